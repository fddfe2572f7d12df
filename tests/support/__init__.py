"""Everything the tests share: checkpoints made by code, a Hub on this machine, processes, samples."""

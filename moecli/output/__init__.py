"""Everything a person sees: the answer on stdout; progress, statistics, hints and errors on stderr."""

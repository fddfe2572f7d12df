"""Products on a GPU, by Triton; imported where a device is used, since Triton is not everywhere."""

"""A packed model on disk: one file of dense tensors, one of expert records per layer, and a manifest of them all."""

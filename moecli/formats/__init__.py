"""Numeric formats of weights: how many bytes a shape takes, and how bytes become tensors."""

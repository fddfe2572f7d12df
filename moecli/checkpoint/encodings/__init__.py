"""How quantised tensors become numbers: a decoder for each encoding that others publish."""

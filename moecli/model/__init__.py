"""What a model is: its spec, the names and shapes of its tensors, its counts, the families and the catalog."""

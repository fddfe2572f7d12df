"""What others publish: a reader per file format, and the binding of tensor names to a model's roles."""

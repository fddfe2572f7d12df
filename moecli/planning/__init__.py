"""What a model takes, where it goes and how fast it will be, on a given machine; read from its spec alone."""

"""The expert store: where routed experts live, and their weighted sum for a batch of tokens."""

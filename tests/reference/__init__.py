"""Plain reference implementations, for families that no library holds."""

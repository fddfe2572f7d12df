"""What the router did: recorded choices, their statistics and their replay through the cache policies. No torch."""

"""Products of hidden states with weights: one gated feed-forward block, by whichever kernel serves its format."""

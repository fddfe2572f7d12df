"""Tests of checkpoints as they are published."""

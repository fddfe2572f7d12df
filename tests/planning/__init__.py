"""Tests of memory, placement and speed."""

"""Tests of numeric formats."""

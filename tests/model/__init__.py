"""Tests of specs, families and counts."""

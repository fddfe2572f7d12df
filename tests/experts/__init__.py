"""Tests of stores of experts."""

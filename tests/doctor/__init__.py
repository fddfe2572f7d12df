"""Tests of the examination of a machine."""

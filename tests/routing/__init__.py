"""Tests of routing statistics and cache replay."""

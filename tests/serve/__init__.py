"""Tests of the server and its engine."""

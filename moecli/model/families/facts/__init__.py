"""Families that are read and counted, but not run: each spec says what the engine lacks."""

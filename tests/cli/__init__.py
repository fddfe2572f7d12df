"""Tests of the program as a process."""

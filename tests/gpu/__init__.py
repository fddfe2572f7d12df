"""Tests on a real card; skipped without one."""

"""Every JSON document that a command prints with --json: a module for each, from the program's types to plain data."""

from __future__ import annotations

SCHEMA_VERSION = 1

"""Tests of tokenizers, templates and streams."""

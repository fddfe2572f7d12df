"""Tests of screens and documents."""

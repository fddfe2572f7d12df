"""Tests of the Hub and its cache, against a server on this machine."""

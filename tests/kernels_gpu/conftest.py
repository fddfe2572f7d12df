"""Triton's interpreter, which must be asked for before Triton is imported; without Triton there is nothing to test."""

from __future__ import annotations

import os
from importlib.util import find_spec

os.environ["TRITON_INTERPRET"] = "1"
collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]

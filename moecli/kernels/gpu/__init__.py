"""Triton kernels for a GPU: imported where they serve, since most machines have neither."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch


@cache
def serves(device: torch.device) -> bool:
    """Whether these kernels compute there: a CUDA device of capability 7.5 or later, or Triton's interpreter."""
    if find_spec("triton") is None:
        return False
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.is_available():
        return torch.cuda.get_device_capability(device) >= (7, 5)
    return device.type == "cpu" and interpreted()


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, as tests have it."""
    return os.environ.get("TRITON_INTERPRET") == "1"

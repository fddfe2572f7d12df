"""Tests on a real card: `pytest -m gpu tests/gpu`, from a checkout. Without one they are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Every test has a home of its own: kernels would be compiled anew in each.
os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@pytest.fixture(scope="session")
def card() -> torch.device:
    """The first one."""
    return torch.device("cuda", 0)

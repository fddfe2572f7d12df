"""Tests on a real card: `pytest -m gpu`. Without one they are skipped."""

from __future__ import annotations

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@pytest.fixture
def card() -> torch.device:
    """The first one."""
    return torch.device("cuda", 0)

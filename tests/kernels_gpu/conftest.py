"""Triton's interpreter, which must be asked for before Triton is imported; without Triton there is nothing to test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moecli.kernels import choice
from tests.support.interpreter import interpret

_CARD = torch.cuda.is_available()  # then the kernels are compiled for it, and a test is one of `pytest -m gpu`
collect_ignore_glob = [] if _CARD or interpret() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _CARD and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if "device" not in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="for the interpreter alone"))


@pytest.fixture(autouse=True)
def _choices() -> Iterator[None]:
    """What MOECLI_KERNEL chose for a test of these is chosen for no other."""
    choice.chosen.cache_clear()
    yield
    choice.chosen.cache_clear()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels compute: the card, if there is one."""
    return torch.device("cuda" if _CARD else "cpu")

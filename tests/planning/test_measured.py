"""Bandwidths that were measured: a file that is damaged, or none, is in nobody's way."""

from __future__ import annotations

import platform

import pytest

from moecli import settings
from moecli.planning.measured import recall, remember
from moecli.planning.speed import Bandwidths


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 5000,
        b"[1]",
        b'{"ram": 1e999, "machine": "%s"}' % platform.node().encode(),
        b'{"ram": 5}',
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(content: bytes) -> None:
    settings.home().mkdir(parents=True)
    (settings.home() / "bandwidths.json").write_bytes(content)
    assert recall() == Bandwidths()
    remember(ram=2e10, disk=3e9)
    assert (recall().ram, recall().disk, recall().evidence) == (2e10, 3e9, "measured")


def test_a_folder_in_its_place_keeps_nothing() -> None:
    (settings.home() / "bandwidths.json").mkdir(parents=True)
    remember(ram=2e10, disk=3e9)
    assert recall() == Bandwidths()

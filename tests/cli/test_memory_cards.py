"""`moecli memory` with a card: named, this machine's own, or none; every figure with its source."""

from __future__ import annotations

import pytest

from moecli.planning import measured
from moecli.planning.gpus import GPUS
from moecli.planning.measured import Card, CardSpeeds
from tests.support.in_process import moecli

MIXTRAL = ("memory", "mixtral", "--ram", "32GiB", "--dtype", "q4")
OWN = Card("A card", 11 * 2**30, True, CardSpeeds(300e9, 12e9, 13e9))


def words(*arguments: str) -> str:
    found = moecli(*arguments)
    assert found.code == 0, found.err
    return " ".join(found.out.split())


@pytest.mark.parametrize("model", ["mixtral", "dbrx", "deepseek-v2", "tiny"])
def test_a_named_card_speeds_up_what_fits_on_it(model: str) -> None:
    arguments = ("memory", model, "--ram", "64GiB", "--dtype", "q4", "--json")
    alone, beside = moecli(*arguments).json, moecli(*arguments, "--gpu", "rtx4090").json
    assert alone["gpu"] is None and alone["bandwidths"].keys() == {"ram", "disk"}
    assert beside["gpu"] == "rtx4090" and beside["plan"]["device"]["total_bytes"] > 0
    assert beside["bandwidths"] == {
        "ram": {"bytes_per_s": 30e9, "source": "typical"},
        "disk": {"bytes_per_s": 1.5e9, "source": "typical"},
        "device": {"bytes_per_s": 1008e9, "source": "maker"},
        "link": {"bytes_per_s": GPUS["rtx4090"].link, "source": "maker"},
    }
    if model != "tiny":  # whose layers are smaller than what it costs to begin one
        assert beside["speed"]["middle"] > alone["speed"]["middle"]
    assert beside["speed"]["first_token_low_s"] < alone["speed"]["first_token_low_s"]


def test_a_screen_names_the_source_of_each_figure() -> None:
    shown = words(*MIXTRAL, "--gpu", "rtx3060", "--ram-speed", "50GB")
    figures = "figures RAM 50 GB/s: as given; rtx3060 360 GB/s, PCIe 4.0 x16 27 GB/s: as its maker prints it reads"
    assert figures in shown and "1 x rtx3060 and 32 GiB RAM" in shown
    assert "figures RAM 30 GB/s: typical reads" in words(*MIXTRAL)


def test_this_machines_own_card_is_planned_for_unless_it_is_left_out() -> None:
    measured.remember(card=OWN)
    shown = words(*MIXTRAL)
    assert "on A card (11 GiB free) and 32 GiB RAM" in shown
    assert "RAM 30 GB/s: typical; A card 300 GB/s, its link 12 GB/s: measured here" in shown
    without = words(*MIXTRAL, "--gpu", "none")
    assert "A card" not in without and "yes, in RAM, on 32 GiB RAM" in without
    assert "A card" not in words(*MIXTRAL, "--gpu", "rtx3060")


def test_what_a_run_does_not_do_with_cards_is_said() -> None:
    shown = words("memory", "mixtral", "--ram", "64GiB", "--gpu", "v100:2")
    assert "q8, q4, q3 would be unpacked on this GPU for every product: left to the processor" in shown
    assert "a run uses one GPU; this counts 2 as one that is as large as all" in shown
    assert " note " not in words("memory", "mixtral", "--ram", "64GiB", "--gpu", "rtx4090")
    assert " note " not in words("memory", "mixtral", "--ram", "64GiB")


def test_the_list_shows_slots() -> None:
    lines = [line.split() for line in moecli("memory", "--gpu", "list").out.splitlines()]
    assert ["rtx4060", "8", "GiB", "272", "GB/s", "4.0", "x8"] in lines and len(lines) == 1 + len(GPUS)

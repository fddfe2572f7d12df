"""Bandwidths that were measured: a file that is damaged, or none, is in nobody's way."""

from __future__ import annotations

import json
import platform
from dataclasses import replace

import pytest

from moecli import settings
from moecli.planning.measured import Card, CardSpeeds, recall, recall_card, remember
from moecli.planning.memory import estimate_memory
from moecli.planning.rates import Pace, Rates
from moecli.planning.speed import Bandwidths, Sources
from tests.support.specs import spec_of


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
    assert (recall().ram, recall().disk, recall().sources) == (2e10, 3e9, Sources("measured", "measured"))


def test_a_folder_in_its_place_keeps_nothing() -> None:
    (settings.home() / "bandwidths.json").mkdir(parents=True)
    remember(ram=2e10, disk=3e9)
    assert recall() == Bandwidths()


CARD = Card("A card", 2**33, True, CardSpeeds(3e11, 2.5e10, 2.4e10))


def test_a_card_is_remembered_beside_ram_and_disk() -> None:
    remember(ram=2e10, disk=3e9)
    remember(card=CARD)
    assert recall_card() == CARD
    assert recall() == Bandwidths(2e10, 3e9, 3e11, 2.5e10, sources=Sources(*["measured"] * 4))
    remember(ram=3e10)
    assert recall_card() == CARD and recall().ram == 3e10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5), ("free", "8GiB"), ("free", 0), ("free", None), ("kernels", 1), ("speeds", None), ("speeds", {}),
        ("speeds", {"memory": 1.0, "up": 1.0}), ("speeds", {"memory": 1.0, "up": 1.0, "down": "fast"}),
        ("speeds", {"memory": 1.0, "up": 1.0, "down": -1.0}), ("speeds", [1.0, 1.0, 1.0]),
    ],
)  # fmt: skip
def test_a_damaged_card_is_none_and_the_rest_stays(key: str, value: object) -> None:
    remember(ram=2e10, disk=3e9, card=CARD)
    file = settings.home() / "bandwidths.json"
    known = json.loads(file.read_text())
    known["card"][key] = value
    file.write_text(json.dumps(known))
    assert recall_card() is None
    assert recall() == Bandwidths(2e10, 3e9, sources=Sources("measured", "measured"))
    remember(card=CARD)
    assert recall_card() == CARD and recall().ram == 2e10


def test_a_card_of_another_machine_is_not_here() -> None:
    remember(card=CARD)
    file = settings.home() / "bandwidths.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"machine": "another"}))
    assert recall_card() is None and recall() == Bandwidths()


RATES = Rates(2e10, Pace(3e10, 0.0), Pace(3e11, 0.25))


def test_rates_are_kept_with_their_card_by_format_and_size() -> None:
    specs = spec_of("mixtral"), spec_of("olmoe")
    mixtral, olmoe = (estimate_memory(spec, "q4", 64) for spec in specs)
    remember(card=CARD.knowing(mixtral, RATES))
    found = recall_card()
    assert found is not None and found == replace(CARD, rates={f"q4, {mixtral.bytes_per_expert} bytes": RATES})
    assert found.of(mixtral) == RATES and found.of(olmoe) is None
    assert found.of(estimate_memory(specs[0], "q8", 64)) is None
    other = replace(RATES, copy=1e9)
    both = found.knowing(olmoe, other)
    assert (both.of(mixtral), both.of(olmoe), both.knowing(olmoe, RATES).of(olmoe)) == (RATES, other, RATES)


@pytest.mark.parametrize(
    "entry",
    [
        None, {}, [], {"copy": 1.0}, {"copy": "fast"}, {"copy": 0.0}, {"host": None}, {"device": {"bytes_per_s": 1.0}},
        {"host": {"bytes_per_s": -1.0, "further": 0.0}}, {"host": {"bytes_per_s": 1.0, "further": -1.0}},
    ],
)  # fmt: skip
def test_damaged_rates_are_none_and_the_card_stays(entry: object) -> None:
    memory = estimate_memory(spec_of("mixtral"), "q4", 64)
    remember(card=CARD.knowing(memory, RATES))
    file = settings.home() / "bandwidths.json"
    known = json.loads(file.read_text())
    (key,) = known["card"]["rates"]
    whole = known["card"]["rates"][key]
    known["card"]["rates"][key] = whole | entry if isinstance(entry, dict) and entry else entry
    if entry == {"copy": 1.0}:
        known["card"]["rates"][key] = entry
    file.write_text(json.dumps(known))
    assert recall_card() == CARD
    known["card"]["rates"] = entry
    file.write_text(json.dumps(known))
    assert recall_card() == CARD

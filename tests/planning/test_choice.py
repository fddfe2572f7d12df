"""Which format runs where nobody names one; and bandwidths that were measured, kept and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecli.model import catalog, families
from moecli.planning import choice, measured
from moecli.planning.estimate import Budget, best_of, estimate, estimate_one
from moecli.planning.speed import TYPICAL_DISK, TYPICAL_RAM, Bandwidths, Sources

GIB = 2**30


@pytest.mark.parametrize(
    ("stored", "names"),
    [("bf16", ("bf16", "q8", "q4")), ("fp16", ("fp16", "q8", "q4")), ("fp32", ("fp32", "bf16", "q8", "q4"))],
)
def test_the_order_of_preference(stored, names):
    assert choice.automatic(stored) == names


@pytest.mark.parametrize(
    ("ram", "streams", "dtype"),
    [(128, True, "bf16"), (64, True, "q8"), (32, False, "q4"), (16, True, "q4"), (16, False, None), (1, True, None)],
)
def test_the_most_precise_that_memory_holds_else_the_smallest_from_disk(ram, streams, dtype):
    entry = catalog.find("mixtral")
    assert entry is not None
    spec = families.read_spec(entry.config())
    budget = Budget.of(f"{ram}GiB")
    estimates = [estimate_one(spec, budget, name, 8192) for name in choice.automatic("bf16")]
    found = best_of(estimates, streams)
    assert (found and found.memory.dtype) == dtype


def test_check_and_context_answer_for_the_format_that_does_best():
    entry = catalog.find("mixtral")
    assert entry is not None
    spec = families.read_spec(entry.config())
    whole = estimate("mixtral", spec, Budget.of("29GiB"), None, None, 1, find_context=True)
    assert whole.fits and (whole.max_dtype, whole.max_context) == ("q4", 32768)
    assert whole.best is not None and whole.best.memory.dtype == "q4"
    asked = estimate("mixtral", spec, Budget.of("29GiB"), "bf16", None, 1, find_context=True)
    assert not asked.fits and (asked.max_dtype, asked.max_context) == ("bf16", 0)


@pytest.mark.parametrize("damage", ["", "[", "{}", '{"machine": "another", "ram": 1e9}', '{"ram": "fast"}'])
def test_what_was_measured_is_kept_and_damage_is_nothing(tmp_path: Path, monkeypatch, damage):
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path))
    measured.remember(ram=12e9)
    assert measured.recall() == Bandwidths(12e9, TYPICAL_DISK, sources=Sources(ram="measured"))
    measured.remember(disk=2e9)
    assert measured.recall() == Bandwidths(12e9, 2e9, sources=Sources("measured", "measured"))
    (tmp_path / "bandwidths.json").write_text(damage)
    assert measured.recall().ram == TYPICAL_RAM
    measured.remember(ram=float("inf"), disk=3e9)
    assert measured.recall().disk == 3e9 and json.loads((tmp_path / "bandwidths.json").read_text())


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "file"))
    measured.remember(ram=12e9)
    assert measured.recall().ram == TYPICAL_RAM


@pytest.mark.parametrize("dtype", ["q8", "q4", "q3", "bf16", "fp32", "nf4", "int8"])
def test_a_device_nobody_named_gets_no_format_that_torch_unpacks_there(dtype):
    packed = dtype in ("q8", "q4", "q3")
    assert choice.device_for(dtype, 5, kernels=True) == 5
    assert choice.device_for(dtype, 5, kernels=False) == (None if packed else 5)
    assert choice.device_for(dtype, None, kernels=True) is None

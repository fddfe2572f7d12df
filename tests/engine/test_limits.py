"""What is measured before a run: how much is read for it, and what of the processors others took."""

from __future__ import annotations

import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import moecli
from moecli.engine import limits
from moecli.engine.load import open_model
from moecli.planning import machine
from moecli.planning.measured import Card, CardSpeeds
from moecli.planning.placement import Tier, fit
from moecli.planning.speed import TYPICAL_DISK, Sources

TINY = Path(moecli.__file__).parent / "tiny"
MIB = 2**20
Times = namedtuple("Times", "user system idle iowait guest guest_nice")
Own = namedtuple("Own", "user system")


def plan(ram: int, disk_experts: int = 0):
    found = fit(open_model(TINY).spec, "bf16", 64, 2**40)
    return replace(found, ram=Tier(dense=ram), disk=Tier(experts=disk_experts))


@pytest.mark.parametrize(
    ("planned", "held", "sample"),
    [(1000, 200, 256), (400, 200, 184), (300, 250, 34), (300, 280, 4), (300, 290, 4), (100, 500, 4), (472, 200, 256)],
)
def test_a_sample_takes_no_more_than_the_plan_leaves(planned, held, sample, monkeypatch) -> None:
    """All but 16 MiB of it, from 4 to 256 MiB."""
    monkeypatch.setattr(machine, "peak_rss", lambda: held * MIB)
    assert limits.sample_bytes(plan(planned * MIB)) == sample * MIB


def test_nothing_is_measured_that_the_plan_does_not_use() -> None:
    model = open_model(TINY)
    found = limits.measure_bandwidths(model, plan(400 * MIB), 4 * MIB)
    assert found.disk == TYPICAL_DISK and found.sources == Sources(ram="measured")
    assert 1e8 < found.ram < 1e12
    assert found.linear is not None
    assert 1e7 < found.linear.bytes_per_s < 1e12 and 1e8 < found.linear.operations_per_s < 1e14


def test_a_card_is_what_is_known_of_it() -> None:
    planned = replace(plan(400 * MIB), device=Tier(dense=1))
    card = Card("A card", 2**33, False, CardSpeeds(3e11, 2e10, 1e10))
    found = limits.measure_bandwidths(open_model(TINY), planned, 4 * MIB, card)
    assert (found.device, found.link, found.kernels) == (3e11, 2e10, False)
    assert found.evidence(["ram", "device", "link"]) == "measured"
    assert limits.measure_bandwidths(open_model(TINY), planned, 4 * MIB).evidence(["device"]) == "typical"


def test_the_fastest_disk_of_several_bursts_counts() -> None:
    class Moody:
        spec = open_model(TINY).spec
        bursts = iter([1e9, 3e9, 2e9])

        def measure_disk(self, dtype: str) -> float | None:
            return next(self.bursts)

        def unpacked(self, dtype: str) -> None: ...

    class Without(Moody):
        bursts = iter([None, None, None])

    assert limits.measure_bandwidths(Moody(), plan(400 * MIB, 1), 4 * MIB).disk == 3e9
    assert limits.measure_bandwidths(Without(), plan(400 * MIB, 1), 4 * MIB).disk == TYPICAL_DISK


@pytest.mark.parametrize(("many", "operations_s"), [(0.09, 0.08), (0.0101, 0.0101 / 64), (0.001, 0.001 / 64)])
def test_products_are_measured_with_one_token_and_with_many(many, operations_s, monkeypatch) -> None:
    """What 63 tokens more take is the time of their operations; where that is lost in noise, a 64th of all of it."""
    spec = open_model(TINY).spec
    seconds = [0.01, many]
    monkeypatch.setattr(limits, "_fastest", lambda work: seconds.pop(0))
    rows = 2**21 // spec.hidden_size
    found = limits._linear(spec, "bf16")
    assert found.bytes_per_s == pytest.approx(2 * rows * spec.hidden_size / 0.01)
    assert found.operations_per_s == pytest.approx(2 * 63 * rows * spec.hidden_size / operations_s)


def test_the_best_of_at_least_three_tries_in_a_fifth_of_a_second() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.02 if calls == 4 else 0.04)

    began = time.perf_counter()
    assert 0.02 <= limits._fastest(work) < 0.04
    assert calls >= 4 and 0.2 <= time.perf_counter() - began < 1.5
    calls = 10
    assert limits._fastest(lambda: [work() for _ in range(3)]) >= 0.1 and calls == 10 + 3 * 3


@pytest.mark.parametrize(
    ("now", "own", "share"),
    [
        (Times(10, 10, 180, 0, 0, 0), Own(0, 0), 0.1),
        (Times(10, 10, 180, 0, 0, 0), Own(8, 2), 0.05),
        (Times(10, 10, 100, 80, 0, 0), Own(8, 12), 0.0),
        (Times(20, 10, 170, 0, 10, 0), Own(0, 0), 0.15),
        (Times(20, 10, 170, 0, 0, 5), Own(5, 0), 0.125),
        (Times(50, 50, 0, 0, 0, 0), Own(0, 0), 1.0),
        (Times(10, 0, 10, 0, 0, 0), Own(15, 0), 0.0),
        (Times(0, 0, 0, 0, 0, 0), Own(0, 0), 0.0),
        (Times(5, 0, -15, 0, 0, 0), Own(0, 0), 0.0),  # counters that went back
    ],
)
def test_what_other_programs_took_meanwhile(now, own, share, monkeypatch) -> None:
    start, begun = Times(100, 50, 1000, 30, 7, 3), Own(10, 5)
    clock = [start, Times(*map(sum, zip(start, now, strict=True)))]
    used = [begun, Own(*map(sum, zip(begun, own, strict=True)))]
    monkeypatch.setattr(psutil, "cpu_times", lambda: clock.pop(0))
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: used.pop(0))
    others = limits.OtherPrograms()
    assert others.share() == pytest.approx(share)


def test_a_system_that_knows_no_guests_and_no_waiting(monkeypatch) -> None:
    few = namedtuple("few", "user system idle")
    clock = [few(0, 0, 0), few(30, 10, 60)]
    monkeypatch.setattr(psutil, "cpu_times", lambda: clock.pop(0))
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: Own(0, 0))
    assert limits.OtherPrograms().share() == pytest.approx(0.4)

"""How the CPU and a device are timed: in turn, without the first try, with weights that no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from moecli.experts import rates
from moecli.experts.arena import Arena
from moecli.experts.copies import Copies
from moecli.model.spec import Activation, FeedForward
from moecli.planning.measured import CardSpeeds
from moecli.planning.rates import Pace, Rates
from moecli.store.expert_record import expert_record

RECORD = expert_record(32, FeedForward(48, Activation.SILU), "bf16")


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ([0.001, 0.03, 0.02, 0.04], 0.02), ([9, 0.01, 0.01, 0.01, 0.005, 0.02], 0.005), ([0, 7, 8, 9], 7),
        ([0, 0, 0, 0.05], 0), ([0, 0, 0, 0.0499, 0.001], 0),
    ],
)  # fmt: skip
def test_the_best_of_three_tries_in_a_twentieth_of_a_second(
    seconds: list[float], best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first does not count; there are no more than that takes."""
    clock = 0.0
    monkeypatch.setattr(rates, "time", SimpleNamespace(perf_counter=lambda: clock))

    def work() -> None:
        nonlocal clock
        clock += seconds.pop(0)

    assert rates._fastest(work) == pytest.approx(best, abs=1e-12)
    assert not seconds


class Noted(Copies):
    """Which host slots are copied where, and waited for."""

    def __init__(self, slots: Arena) -> None:
        super().__init__(slots)
        self.calls: list[tuple[object, ...]] = []

    def upload(self, slot: int, source: Tensor, host: int) -> None:
        self.calls.append(("upload", slot, host, int(source.sum()), len(source)))
        super().upload(slot, source, host)

    def wait(self, host: int) -> None:
        self.calls.append(("wait", host))


@pytest.mark.parametrize(
    ("in_ram", "cold", "turns"),
    [(3, 2**27, [0, 1, 2, 0, 1]), (3, 2 * RECORD.stride, [0, 1, 0, 1, 0]), (0, 2**27, [0] * 5), (2, 1, [0] * 5)],
)
def test_copies_and_products_take_other_weights_each_time(
    in_ram: int, cold: int, turns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rates._COLD == 128 * 2**20  # no processor's cache holds so much
    slots, ram = Arena(1, RECORD.stride), Arena(in_ram, RECORD.stride)
    for index in range(in_ram):
        ram.slot(index).fill_(255)  # as numbers, none
    copies, asked = Noted(slots), list[tuple[int, int]]()
    compute = rates.compute

    def computed(x: Tensor, group: list[tuple[int, tuple[Tensor, ...]]], activation: Activation) -> Tensor:
        assert activation is Activation.RELU and x.dtype is torch.bfloat16
        asked.append((len(x), group[0][1][0].data_ptr()))
        return compute(x, group, activation)

    def fastest(work: Callable[[], object]) -> float:
        assert [work() for _ in range(5)] in ([None] * 5, [0.0] * 5)
        return {0: 0.5, 5: 0.125, 10: 0.125 * (1 + 2 * 31)}[len(asked)]

    monkeypatch.setattr(rates, "_COLD", cold)
    monkeypatch.setattr(rates, "compute", computed)
    monkeypatch.setattr(rates, "_fastest", fastest)
    found = rates.measure(RECORD, Activation.RELU, torch.bfloat16, slots, ram, copies)
    pace = Pace(RECORD.size / 0.125, 2.0)
    assert found == Rates(RECORD.stride / 0.5, pace, pace)
    assert copies.calls == [call for turn in turns for call in (("upload", 0, turn, 0, RECORD.stride), ("wait", turn))]
    assert [tokens for tokens, _ in asked] == [1] * 5 + [32] * 5
    places = [place for _, place in asked]
    assert places[:5] == places[5:] and len(set(places)) == len(set(turns))
    if in_ram:
        assert places[:5] == [ram.slot(turn).data_ptr() for turn in turns]


def test_a_card_copies_its_own_memory_and_pinned_memory_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within it every byte is read and written."""
    calls = list[list[tuple[object, ...]]]()

    class Traced(Noted):
        def download(self, slot: int, target: Tensor, host: int) -> None:
            self.calls.append(("download", slot, host, len(target)))
            super().download(slot, target, host)

        def synchronize(self) -> None:
            self.calls.append(("synchronize",))

    made = list[Traced]()

    def fastest(work: Callable[[], object]) -> float:
        work()
        calls.append(made[0].calls.copy())
        made[0].calls.clear()
        return 0.5 / len(calls)

    monkeypatch.setattr(rates, "copies_for", lambda slots, device: made.append(Traced(slots)) or made[0])
    monkeypatch.setattr(rates, "_fastest", fastest)
    assert rates.card_speeds(torch.device("cpu"), 1000) == CardSpeeds(2000 / 0.5, 1000 / 0.25, 1000 / (0.5 / 3))
    up, down = [("upload", 0, 0, 0, 1000), ("wait", 0)], [("download", 0, 0, 1000), ("wait", 0)]
    assert calls == [[("synchronize",)], up, down]


def test_speeds_are_measured() -> None:
    found = rates.card_speeds(torch.device("cpu"), 2**20)
    assert all(1e8 < speed < 1e12 for speed in (found.memory, found.up, found.down))

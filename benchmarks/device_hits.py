"""Which experts to keep on a device: python -m benchmarks.device_hits TRACE

Replays a recorded trace, a run a prompt: its first third is read, the rest decoded. The share of its experts that a run
finds on a device which holds a part of them: the first ones by number, those that other prompts of the trace took most
often, those that change places as `GpuOffloadedExperts` lets them, and those that its own answer takes most often,
which nobody knows before. Markdown.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moecli.experts.gpu_offloaded import EXCHANGES
from moecli.experts.policies import DEFAULT, POLICIES
from moecli.experts.slot_map import Place, SlotMap
from moecli.routing import files
from moecli.routing.trace import Choices, Integers, RoutingTrace

SHARES = (0.25, 0.5, 0.75)
_LEAST = 90  # tokens of a prompt that is replayed


class Moving:
    """One layer whose experts change places: as many of `experts` on the device as it has slots."""

    def __init__(self, experts: int, slots: int) -> None:
        self._map = SlotMap([Place(index < slots, index) for index in range(experts)], POLICIES[DEFAULT].new())
        self._map.find(dict.fromkeys(range(experts), 0), 1)
        for expert in range(experts):
            self._map.filled(expert)

    def read(self, chosen: Choices) -> None:
        """A prompt [T, k]: what it takes of the others is copied, and stays if it is worth more than another."""
        counts = Counter(chosen.ravel().tolist())
        for expert in self._map.find(counts, len(chosen)).ram:
            self._exchange(expert, counts)

    def take(self, chosen: Sequence[int]) -> list[int]:
        """The experts of one token: those that are elsewhere."""
        return list(self._map.find(dict.fromkeys(chosen, 1), 1).ram)

    def promote(self, elsewhere: Sequence[int], chosen: Sequence[int]) -> bool:
        """Whether the most valuable of them takes another's place."""
        return self._exchange(self._map.strongest(elsewhere), dict.fromkeys(chosen, 1))

    def _exchange(self, expert: int, asked: dict[int, int]) -> bool:
        leaving = self._map.weaker(expert, asked)
        if leaving is not None:
            self._map.exchange(expert, leaving, -1)
        return leaving is not None


def moving(trace: RoutingTrace, slots: int, read: Integers, decoded: Integers) -> float:
    """The share of a run's experts that are on the device where the policy moves them."""
    layers = [(Moving(layer.experts, slots), layer.chosen) for layer in trace.layers]
    for layer, chosen in layers:
        layer.read(chosen[read])
    credit, found, taken = 0.0, 0, 0
    for token in decoded.tolist():
        for layer, chosen in layers:
            mine = chosen[token].tolist()
            elsewhere = layer.take(mine)
            found, taken = found + len(mine) - len(elsewhere), taken + len(mine)
            credit = min(1.0, credit + len(elsewhere) * EXCHANGES)
            if elsewhere and credit == 1.0 and layer.promote(elsewhere, mine):
                credit = 0.0
    return found / taken


def fixed(trace: RoutingTrace, slots: int, known: Integers, decoded: Integers) -> float:
    """The same where those stay that the tokens `known` took most often; the first ones if there are none."""
    found = []
    for layer in trace.layers:
        counts = np.bincount(layer.chosen[known].ravel(), minlength=layer.experts)
        kept = np.argsort(-counts, kind="stable")[:slots]
        found.append(np.isin(layer.chosen[decoded], kept).mean())
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trace", type=Path)
    trace = files.read(parser.parse_args().trace)
    prompts = [np.flatnonzero(trace.prompt == number) for number in np.unique(trace.prompt)]
    prompts = [tokens for tokens in prompts if len(tokens) >= _LEAST]
    print("| on the device | first by number | by other prompts | moved | by its own answer |\n|--:|--:|--:|--:|--:|")
    for share in SHARES:
        slots = round(share * trace.layers[0].experts)
        rows = []
        for tokens in prompts:
            read, decoded = tokens[: len(tokens) // 3], tokens[len(tokens) // 3 :]
            others = np.concatenate([each for each in prompts if each is not tokens])
            rows.append(
                [
                    fixed(trace, slots, decoded[:0], decoded),
                    fixed(trace, slots, others, decoded),
                    moving(trace, slots, read, decoded),
                    fixed(trace, slots, decoded, decoded),
                ]
            )
        print(f"| {share:.0%} | " + " | ".join(f"{mean:.0%}" for mean in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()

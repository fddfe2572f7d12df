"""Chance is called "beyond chance" as seldom as promised, on real prompts; what is there is called."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import nulls
from moecli.routing.domains import domain_distances, units
from moecli.routing.trace import RoutingTrace
from tests.support.traces import recorded_trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def english() -> RoutingTrace:
    """40 passages of one text, 160 characters each."""
    return nulls.record(nulls.passages(["english"], length=160))


@pytest.mark.parametrize(
    ("trial", "seeds"),
    [
        (nulls.domains(20, 20), 60), (nulls.domains(8, 8, 8, 8, 8), 30), (nulls.domains(30, 6, 4), 30),
        (nulls.balance("entropy"), 40), (nulls.balance("max_violation"), 40), (nulls.locality, 20), (nulls.pairs, 6),
    ],
)  # fmt: skip
def test_chance_is_seldom_called(english: RoutingTrace, trial: object, seeds: int) -> None:
    """At most 1 in 40 is meant; of so few seeds up to 15 % by luck."""
    prompts, _ = nulls.rate(nulls.Verdict("", "", trial), english, seeds)  # type: ignore[arg-type]
    assert prompts <= max(0.15, 2 / seeds)


def test_tokens_as_the_unit_called_it_every_time(english: RoutingTrace) -> None:
    assert nulls.rate(nulls.Verdict("", "", nulls.domains(20, 20)), english, 3)[1] == 1


def test_languages_are_told_apart() -> None:
    """Six texts cut into five passages each."""
    trace = recorded_trace()
    passage = trace.prompt * 5 + np.concatenate([np.arange(250) // 50] * 6)[: trace.tokens]
    known = units(RoutingTrace(trace.layers, trace.ids, passage.astype("u4"), trace.domain, trace.generated))
    found = domain_distances([known.counts(layer) for layer in trace.layers], known.domain, 6)
    assert all(layer.chance is not None and layer.chance.beyond for layer in found.layers[1:])
    assert found.beyond.sum() >= 24

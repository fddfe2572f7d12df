"""Load figures against published counts, plain Python, and what a uniform router shows."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.routing.balance import OVERFLOW_FACTORS, balance, noise, overflow, uniform_counts
from tests.support.traces import uniform

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
LOADS = [(model, place, row) for model, rows in GOLDEN["loads"].items() for place, row in rows.items()]


@pytest.mark.parametrize(("model", "place", "row"), LOADS, ids=[f"{model}-{place}" for model, place, _ in LOADS])
def test_the_figures_of_published_counts(model: str, place: str, row: dict[str, float]) -> None:
    counts = np.array(row["counts"])
    measured = balance(counts)
    assert measured.entropy == pytest.approx(row["entropy_norm"], abs=5e-5 + 1e-9)
    assert measured.max_violation == pytest.approx(row["maxvio"], abs=5e-4 + 1e-9)
    assert measured.cv2 == pytest.approx(row["cv2"], abs=5e-5 + 1e-9)
    assert measured.gini == pytest.approx(row["gini"], abs=5e-5 + 1e-9)
    assert counts.min() / counts.mean() == pytest.approx(row["min_over_mean"], abs=5e-4 + 1e-9)


def test_the_hottest_published_expert_takes_nearly_every_token() -> None:
    row = GOLDEN["loads"]["OLMoE-1B-7B-0924"]["arxiv/L0"]
    assert round(row["counts"][0] / row["tokens"], 3) == 0.977


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(any))
def test_the_figures_are_those_of_plain_python(loads: list[int]) -> None:
    size, mean = len(loads), sum(loads) / len(loads)
    figures = balance(np.array(loads))
    shares = [load / sum(loads) for load in loads]
    assert figures.entropy == pytest.approx(-sum(p * math.log(p) for p in shares if p) / math.log(size))
    assert figures.max_violation == pytest.approx(max(loads) / mean - 1)
    assert figures.cv2 == pytest.approx(sum((load / mean - 1) ** 2 for load in loads) / size)
    differences = sum(abs(one - other) for one in loads for other in loads)
    assert figures.gini == pytest.approx(differences / (2 * size * size * mean))
    assert figures.dead == loads.count(0)
    for factor in OVERFLOW_FACTORS:
        dropped = sum(max(0.0, load - factor * mean) for load in loads)
        assert overflow(np.array(loads), factor) == pytest.approx(dropped / sum(loads))


# E, k, then for 20, 100, 1000 and 10000 tokens: dead at 20, MaxVio at each, load entropy at the first three.
TABLE = [
    (8, 2, 0.002, (0.62, 0.26, 0.09, 0.03), (0.963, 0.993, 0.9993)),
    (16, 4, 0.002, (0.75, 0.33, 0.10, 0.03), (0.972, 0.994, 0.9995)),
    (64, 8, 0.069, (1.61, 0.65, 0.20, 0.06), (0.952, 0.992, 0.9992)),
    (128, 8, 0.275, (2.65, 1.15, 0.34, 0.10), (0.910, 0.984, 0.998)),
    (256, 8, 0.528, (4.94, 1.94, 0.55, 0.16), (0.850, 0.969, 0.997)),
]


@pytest.mark.parametrize(("experts", "active", "dead", "violations", "entropies"), TABLE)
def test_what_a_uniform_router_shows(
    experts: int, active: int, dead: float, violations: tuple[float, ...], entropies: tuple[float, ...]
) -> None:
    shown = [noise(experts, active, tokens).mean for tokens in (20, 100, 1000, 10000)]
    assert shown[0].dead / experts == pytest.approx(dead, abs=0.002)
    for figures, violation in zip(shown, violations, strict=True):
        assert figures.max_violation == pytest.approx(violation, rel=0.06, abs=0.01)
    for figures, entropy in zip(shown, entropies, strict=False):
        assert figures.entropy == pytest.approx(entropy, abs=0.0015)
    # (E - k) / (k T): the variance of a load, exactly
    assert shown[3].cv2 == pytest.approx((experts - active) / (active * 10000), rel=0.1)


@pytest.mark.parametrize(("experts", "active"), [(8, 2), (64, 8), (8, 8), (4, 1), (1, 1)])
def test_the_fast_simulation_spreads_like_the_exact_one(experts: int, active: int) -> None:
    tokens = 300
    fast = uniform_counts(experts, active, tokens, 40_000)[:400]
    exact = uniform_counts(experts, active, tokens, 200)
    assert exact.sum(1).tolist() == [tokens * active] * 200
    assert fast.mean() == pytest.approx(tokens * active / experts, rel=0.02)
    assert fast.var(1).mean() == pytest.approx(exact.var(1).mean(), rel=0.1, abs=1e-9)


@pytest.mark.slow
def test_a_uniform_router_is_within_its_noise_and_a_skewed_one_is_not() -> None:
    chance = noise(16, 2, 500)
    within = [
        not chance.shows(name, getattr(balance(np.bincount(uniform(16, 2, 500, seed).ravel())), name))
        for seed in range(20)
        for name in ("entropy", "max_violation", "cv2", "gini")
    ]
    assert sum(within) >= 0.85 * len(within)
    skewed = np.bincount(uniform(16, 2, 500).ravel())
    skewed[0] += 200
    assert all(chance.shows(name, getattr(balance(skewed), name)) for name in ("entropy", "max_violation", "cv2"))


def test_counts_are_a_plain_recount() -> None:
    chosen = uniform(8, 2, 300)
    recount = Counter(expert for row in chosen.tolist() for expert in row)
    assert np.bincount(chosen.ravel(), minlength=8).tolist() == [recount[expert] for expert in range(8)]

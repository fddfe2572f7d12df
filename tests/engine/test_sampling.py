"""Sampling: what may come out, how often, and again with the same seed."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.engine.sampling import Sampler, Sampling, SamplingOptions, _candidates, _invert, new_seed
from moecli.errors import UsageError
from moecli.text.defaults import GenerationDefaults

SHARES = [0.4, 0.25, 0.15, 0.1, 0.06, 0.04]
LOGITS = torch.tensor([math.log(share) for share in SHARES])[[3, 0, 5, 1, 4, 2]]  # not sorted
ORDER = [1, 3, 5, 0, 4, 2]  # ids, likeliest first


def draws(sampling: Sampling, logits: torch.Tensor = LOGITS, count: int = 4000, seed: int = 0) -> Counter[int]:
    sampler = Sampler(sampling, seed)
    return Counter(sampler.pick(logits, ()) for _ in range(count))


def chi_square(found: Counter[int], expected: dict[int, float]) -> float:
    total = found.total()
    return sum((found[i] - share * total) ** 2 / (share * total) for i, share in expected.items())


def shares(ids: list[int], temperature: float = 1.0) -> dict[int, float]:
    powers = {i: math.exp(float(LOGITS[i]) / temperature) for i in ids}
    return {i: power / sum(powers.values()) for i, power in powers.items()}


# 0.999 quantiles of chi-square with one degree less than there are outcomes
LIMIT = {2: 10.83, 3: 13.82, 4: 16.27, 5: 18.47, 6: 20.52}

SUPPORTS = {
    "all": (Sampling(temperature=1.0), ORDER),
    "hot": (Sampling(temperature=2.0), ORDER),
    "cold": (Sampling(temperature=0.7), ORDER),
    "top-k": (Sampling(temperature=1.0, top_k=3), ORDER[:3]),
    "top-k beyond the vocabulary": (Sampling(temperature=1.0, top_k=100), ORDER),
    "top-p": (Sampling(temperature=1.0, top_p=0.7), ORDER[:3]),  # .4 + .25 is short of .7
    "top-p of nearly all": (Sampling(temperature=1.0, top_p=0.97), ORDER),
    "min-p": (Sampling(temperature=1.0, min_p=0.2), ORDER[:4]),  # at least .2 * .4
    "top-k then top-p of the rest": (Sampling(temperature=1.0, top_k=4, top_p=0.5), ORDER[:2]),  # .4 / .9 < .5
    "all filters": (Sampling(temperature=1.0, top_k=5, top_p=0.9, min_p=0.3), ORDER[:3]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTS)
def test_the_filters_keep_the_right_ids_with_the_right_shares(name: str) -> None:
    sampling, kept = SUPPORTS[name]
    found = draws(sampling)
    assert set(found) == set(kept)
    assert chi_square(found, shares(kept, sampling.temperature)) < LIMIT[len(kept)]


def test_the_statistic_can_fail() -> None:
    assert chi_square(draws(Sampling(temperature=1.0)), shares(ORDER, 1.2)) > LIMIT[6]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_p=1e-9),
     Sampling(temperature=1.0, min_p=1.0), Sampling(temperature=0.01)],
)  # fmt: skip
def test_the_likeliest_alone(sampling: Sampling) -> None:
    assert {Sampler(sampling, seed).pick(LOGITS, ()) for seed in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-30, 1e-40, 1e-300])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_a_temperature_near_zero_is_nearly_greedy(temperature: float, filters: dict[str, float]) -> None:
    sampler = Sampler(Sampling(temperature=temperature, **filters), 0)
    assert [sampler.pick(LOGITS * 30, ()) for _ in range(5)] == [1] * 5


def test_a_seed_repeats_and_another_differs() -> None:
    def text(seed: int, **options: float) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, **options), seed)
        return [sampler.pick(LOGITS, ()) for _ in range(40)]

    for options in ({}, {"top_p": 0.9}, {"top_k": 4}):
        assert text(7, **options) == text(7, **options)
        assert text(7, **options) != text(8, **options)


@pytest.mark.slow
def test_a_nucleus_larger_than_the_first_look() -> None:
    """2000 equal ids of which 95 % are in: far more than are sorted at first."""
    found = draws(Sampling(temperature=1.0, top_p=0.95), torch.zeros(2000), count=2000)
    assert 1100 < len(found) <= 1900
    wide = torch.cat((torch.full((1,), 2.0), torch.zeros(1999)))
    assert len(draws(Sampling(temperature=1.0, min_p=0.1), wide, count=2000)) > 1100


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])
    pick = Sampler(Sampling(repeat_penalty=1.2), 0).pick
    assert pick(logits, ()) == 0
    assert pick(logits, [0]) == 1
    assert pick(logits, [0, 0, 0]) == 1  # once, however often it was seen: 2 / 1.2 > 1.9 / 1.2 ** 2
    assert pick(logits, [0, 1]) == 0
    assert pick(logits[2:], [0]) == 1
    assert torch.equal(logits, torch.tensor([2.0, 1.9, -1.0, -1.1]))  # not in place


def test_a_penalty_shifts_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0, repeat_penalty=2.0), 0)
    shifted = LOGITS.clone()
    shifted[1] *= 2
    found = Counter(sampler.pick(LOGITS, [1]) for _ in range(4000))
    expected = shifted.softmax(-1).tolist()
    assert chi_square(found, dict(enumerate(expected))) < LIMIT[6]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -0.1}, "--temperature"), ({"temperature": 101.0}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"), ({"temperature": math.inf}, "--temperature"),
        ({"top_k": -1}, "--top-k"), ({"top_p": 0.0}, "--top-p"), ({"top_p": 1.01}, "--top-p"),
        ({"top_p": math.nan}, "--top-p"), ({"min_p": -0.1}, "--min-p"), ({"min_p": 1.1}, "--min-p"),
        ({"repeat_penalty": 0.0}, "--repeat-penalty"), ({"repeat_penalty": -1.0}, "--repeat-penalty"),
        ({"repeat_penalty": math.inf}, "--repeat-penalty"), ({"repeat_penalty": 5e-324}, "--repeat-penalty"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=f"{said} .* is out of range") as caught:
        Sampling(**options)
    assert caught.value.exit_code == 2 and caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {}, {"temperature": 100.0}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 1.0}, {"top_p": 1e-9}, {"min_p": 0.0},
        {"min_p": 1.0}, {"repeat_penalty": 100.0}, {"repeat_penalty": 0.01},
    ],
)  # fmt: skip
def test_the_ends_of_every_range_are_in_it(options: dict[str, float]) -> None:
    for name, value in options.items():
        assert getattr(Sampling(**options), name) == value


def test_what_was_found_in_range_stays_so() -> None:
    with pytest.raises(AttributeError):
        Sampling().temperature = 200.0  # type: ignore[misc]


def test_nothing_asked_for_is_greedy_without_filters() -> None:
    assert Sampling() == Sampling(0.0, 0, 1.0, 0.0, 1.0)


def test_a_word_of_the_user_counts_even_if_it_is_zero() -> None:
    vendor = GenerationDefaults(temperature=0.3, top_k=7, top_p=0.8, min_p=0.1, repetition_penalty=1.2, do_sample=True)
    assert SamplingOptions().resolve(vendor) == Sampling(0.3, 7, 0.8, 0.1, 1.2)
    mine = SamplingOptions(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    assert mine.resolve(vendor) == Sampling()
    greedy = GenerationDefaults(temperature=0.3, do_sample=False)
    assert SamplingOptions().resolve(greedy).temperature == 0
    assert SamplingOptions(temperature=0.9).resolve(greedy).temperature == 0.9
    assert SamplingOptions().resolve(GenerationDefaults()) == Sampling(0.7)
    with pytest.raises(UsageError, match="--top-p 3"):
        SamplingOptions(top_p=3.0).resolve(vendor)


def test_seeds_are_of_32_bits_and_differ() -> None:
    seeds = {new_seed() for _ in range(200)}
    assert len(seeds) > 195 and 0 <= min(seeds) < 2**30 and 2**31 < max(seeds) < 2**32


def test_one_draw_for_each_token_and_none_for_greedy_ones() -> None:
    """The n-th token of a seed does not depend on how those before it were filtered."""
    expected = random.Random(5)
    cumulative = LOGITS.double().softmax(-1).cumsum(0).tolist()
    sampler = Sampler(Sampling(temperature=1.0), 5)
    for _ in range(50):
        draw = expected.random()
        assert sampler.pick(LOGITS, ()) == next(i for i, mass in enumerate(cumulative) if mass > draw)


@pytest.mark.parametrize("size", [511, 512, 513, 2000])
def test_the_first_look_decides_nothing(size: int) -> None:
    """A nucleus of all but the last ids, around the number that is sorted first."""
    logits = torch.linspace(1, 0, size)
    mass = logits.softmax(-1).cumsum(0)
    for kept in (1, 2, min(size, 512) - 1, min(size, 512), size - 1):
        options = Sampling(temperature=1.0, top_p=float((mass[kept - 1] + (mass[kept - 2] if kept > 1 else 0)) / 2))
        probabilities, ids = _candidates(logits, options)
        assert ids.tolist() == list(range(kept)) and len(probabilities) == kept
        assert torch.allclose(probabilities, logits.softmax(-1)[:kept])


@settings(max_examples=80)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(0, 100), st.integers(0, 60), st.floats(1e-6, 1), st.floats(0, 1), st.floats(0.01, 100), st.integers(0, 9),
)  # fmt: skip
def test_any_options_give_an_id_of_the_vocabulary(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p, penalty), seed)
    assert 0 <= sampler.pick(torch.tensor(logits), [0]) < len(logits)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40).filter(any), st.floats(0, 1, exclude_max=True))
def test_every_draw_has_an_index_and_it_is_the_right_one(shares: list[float], draw: float) -> None:
    """Also the largest draw there is, and the smallest."""
    probabilities = torch.tensor(shares)
    cumulative = torch.tensor(shares).double().cumsum(0).tolist()
    for each in (draw, 0.0, 1 - 2**-53):
        index = _invert(probabilities, each)
        assert index == next(i for i, mass in enumerate(cumulative) if mass > each * cumulative[-1])
        assert shares[index] > 0

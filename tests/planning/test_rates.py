"""Where an expert is computed that is not on the device: the way that ends first, and both sides end together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecli.planning.rates import Pace, Rates, cheaper, copied_from, split


def test_the_cheaper_way_by_hand() -> None:
    """10 bytes/s to copy, 5 on the CPU, 100 on the device; further tokens cost the CPU as much as the first."""
    rates = Rates(10.0, Pace(5.0, 1.0), Pace(100.0, 0.0))
    assert rates.host.seconds(3, 10) == 6.0
    assert cheaper(1, 10, rates) and copied_from(10, rates) == 1  # 1.1 s, not 2
    slow = Rates(4.0, Pace(5.0, 1.0), Pace(100.0, 0.0))
    assert not cheaper(1, 10, slow)  # 2.6 s, not 2
    assert cheaper(2, 10, slow) and copied_from(10, slow) == 2  # 2.6 s, not 4
    assert copied_from(10, Rates(1e-9, Pace(5.0, 0.0), Pace(100.0, 0.0))) is None


def test_the_same_time_is_not_less() -> None:
    assert not cheaper(1, 10, Rates(10.0, Pace(5.0, 1.0), Pace(10.0, 0.0)))  # 2 s either way


def test_copies_and_the_processor_end_together() -> None:
    rates = Rates(10.0, Pace(10.0, 0.0), Pace(1e9, 0.0))
    assert len(split(dict.fromkeys(range(8), 1), 10, rates)[0]) == 4
    assert len(split(dict.fromkeys(range(9), 1), 10, Rates(20.0, Pace(10.0, 0.0), Pace(1e9, 0.0)))[0]) == 6
    assert split({0: 1, 1: 500, 2: 2}, 10, Rates(10.0, Pace(11.0, 1.0), Pace(1e9, 0.0)))[0] == [1, 0]
    assert split({}, 10, rates) == ([], 0.0)
    assert split({3: 1, 1: 1, 2: 1, 0: 1}, 10, rates)[0] == [1, 3]  # of equal ones the lower number chooses first


def test_the_end_is_that_of_the_slower_side() -> None:
    """1 s to copy, 2 s on the CPU, half a second on the device: copied one after another while the last is computed."""
    rates = Rates(10.0, Pace(5.0, 0.0), Pace(20.0, 0.0))
    assert split({0: 1}, 10, rates) == ([0], 1.5)
    assert split({0: 1, 1: 1}, 10, rates) == ([0], 2.0)
    assert split({0: 1, 1: 1, 2: 1}, 10, rates) == ([0, 2], 2.5)


def test_a_device_that_is_busy_takes_less() -> None:
    """It computes with its own before it gets to what is copied."""
    rates = Rates(10.0, Pace(5.0, 0.0), Pace(20.0, 0.0))
    assert split({0: 1}, 10, rates, busy=1.0) == ([0], 1.5)
    assert split({0: 1}, 10, rates, busy=1.25) == ([0], 1.75)
    assert split({0: 1}, 10, rates, busy=1.5) == ([], 2.0)
    assert split({}, 10, rates, busy=7.0) == ([], 7.0)
    assert split({0: 1}, 10, rates, busy=7.0) == ([], 7.0)


@given(
    counts=st.dictionaries(st.integers(0, 63), st.integers(1, 512)), copy=st.floats(0.1, 10), further=st.floats(0, 1)
)
def test_a_split_is_never_slower_than_the_processor_alone(counts: dict[int, int], copy: float, further: float) -> None:
    rates = Rates(copy, Pace(1.0, further), Pace(100.0, 0.01))
    copied, end = split(counts, 1, rates)
    alone = sum(rates.host.seconds(tokens, 1) for tokens in counts.values())
    here = sum(rates.host.seconds(tokens, 1) for expert, tokens in counts.items() if expert not in copied)
    there = len(copied) / copy
    assert max(here, there) <= end * (1 + 1e-9) and end <= alone * (1 + 1e-9)
    assert end == pytest.approx(max(here, end))

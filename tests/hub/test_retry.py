"""Patience: how long the waits are, what counts as progress, and when it ends."""

from __future__ import annotations

import random
import threading

import pytest

from moecli.errors import NetworkError
from moecli.hub.failures import HubBusy
from moecli.hub.retry import RetryPolicy, Stopped, retry

QUICK = RetryPolicy(attempts=3, first_wait=0)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.5), (0.25, 0.75), (0.999, 1.499)])
@pytest.mark.parametrize(("failures", "whole"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (60, 30.0)])
def test_waits_double_and_half_of_each_is_chance(chance, share, failures, whole, monkeypatch) -> None:
    monkeypatch.setattr(random, "random", lambda: chance)
    assert RetryPolicy().wait(failures, None) == pytest.approx(whole * share)
    assert RetryPolicy().wait(failures, 20) == pytest.approx(20 + 0.5 * chance)


@pytest.mark.parametrize(("gained", "tries"), [(0, 3), (2**16 - 1, 3), (2**16, 9), (2**20, 9)])
def test_what_makes_progress_has_not_failed(gained: int, tries: int) -> None:
    """A server that gives a few bytes at a time has."""
    made = 0

    def action() -> str:
        nonlocal made
        made += 1
        if made < 9:
            raise HubBusy("busy")
        return "done"

    if tries == 9:
        assert retry(action, QUICK, lambda: made * gained) == "done"
    else:
        with pytest.raises(HubBusy):
            retry(action, QUICK, lambda: made * gained)
    assert made == tries


@pytest.mark.parametrize(("seconds", "asked", "told"), [(2.9, None, False), (3.0, None, True), (0.1, 0.2, True)])
def test_waits_that_can_be_noticed_are_told(seconds: float, asked: float | None, told: bool, monkeypatch) -> None:
    """And whatever the Hub asks for."""
    monkeypatch.setattr(random, "random", lambda: 0.5)
    waits: list[tuple[str, float]] = []
    stop = threading.Event()
    stop.set()

    def action() -> None:
        raise HubBusy("busy", wait=asked)

    with pytest.raises(Stopped):
        retry(action, RetryPolicy(first_wait=seconds), tell=lambda *each: waits.append(each), stop=stop)
    expected = seconds if asked is None else asked + seconds / 2
    assert waits == ([("busy", pytest.approx(expected))] if told else [])


@pytest.mark.parametrize(("asked", "borne"), [(600.0, True), (600.1, False)])
def test_a_wait_that_nobody_bears_is_an_error(asked: float, borne: bool) -> None:
    told: list[float] = []

    class Told(Exception):
        """Nobody waits in a test."""

    def tell(why: str, seconds: float) -> None:
        told.append(seconds)
        raise Told

    def action() -> None:
        raise HubBusy("the Hub answers HTTP 429", wait=asked)

    with pytest.raises(Told if borne else NetworkError) as ended:
        retry(action, RetryPolicy(attempts=3, first_wait=0), tell=tell)
    assert told == [asked] if borne else "asks to wait 600 s" in str(ended.value) and told == []

"""Which format a model runs in where nobody names one: the only place that decides it."""

from __future__ import annotations

from collections.abc import Sequence

from moecli.formats import FORMATS
from moecli.planning.placement import Plan

SMALLEST = "q4"  # of those chosen for somebody: what q3 loses is for its user to weigh
_FALLBACKS = ("bf16", "q8", SMALLEST)  # the most precise first; the other formats are chosen by name


def automatic(stored: str) -> tuple[str, ...]:
    """What "auto" may mean for weights stored so, in the order of preference."""
    return stored, *(name for name in _FALLBACKS if FORMATS[name].bits < FORMATS[stored].bits)


def best(plans: Sequence[Plan], streaming: Sequence[Plan]) -> Plan | None:
    """Of one model's plans, most precise first: the first that memory holds, else the last of `streaming` that runs.

    `streaming` are those whose experts can be read from disk as they are needed. None where none runs.
    """
    inside = next((plan for plan in plans if plan.fits), None)
    return inside or next((plan for plan in reversed(streaming) if plan.runs), None)

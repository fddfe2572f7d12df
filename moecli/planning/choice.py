"""Which format a model runs in, and on which device, where nobody names one: the only place that decides it."""

from __future__ import annotations

from collections.abc import Sequence

from moecli.formats import FORMATS, GROUPED
from moecli.formats.words import formats_of
from moecli.planning.placement import Plan

SMALLEST = "q4"  # of those chosen for somebody: what q3 loses is for its user to weigh
_FALLBACKS = ("bf16", "q8", SMALLEST)  # the most precise first; the other formats are chosen by name
DEVICE_KERNELS = ("q8", "q4", "q3")  # whose products on a device are moecli's own, or a slow chain of torch operators


def unpacked_on_device(dtype: str, kernels: bool) -> bool:
    """Whether torch must unpack this format on a device for every product: moecli has, or runs, no kernels there."""
    formats = formats_of(dtype)
    parts = {formats.experts, formats.dense}
    return not parts.isdisjoint(GROUPED if kernels else (*GROUPED, *DEVICE_KERNELS))


def device_for(dtype: str, device: int | None, kernels: bool) -> int | None:
    """Bytes of a device that nobody named which a run in this format takes; None to leave it out.

    It is not given what torch must unpack there: measured on an H100, q4 decoded so at 7 tokens/s on it and at 340 on
    the processors beside it.
    """
    return None if unpacked_on_device(dtype, kernels) else device


def automatic(stored: str) -> tuple[str, ...]:
    """What "auto" may mean for weights stored so, in the order of preference."""
    bits = FORMATS[formats_of(stored).experts].bits
    return stored, *(name for name in _FALLBACKS if FORMATS[name].bits < bits)


def best(plans: Sequence[Plan], streaming: Sequence[Plan]) -> Plan | None:
    """Of one model's plans, most precise first: the first that memory holds, else the last of `streaming` that runs.

    `streaming` are those whose experts can be read from disk as they are needed. None where none runs.
    """
    inside = next((plan for plan in plans if plan.fits), None)
    return inside or next((plan for plan in reversed(streaming) if plan.runs), None)

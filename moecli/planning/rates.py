"""How long experts take on the CPU, by way of a device, or on both at once: what runs obey and forecasts add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MOST = 4096  # tokens beyond which nobody asks


@dataclass(frozen=True, slots=True)
class Pace:
    """Multiplying with weights: bytes per second for one token, and what each further one adds, as a share of that."""

    bytes_per_s: float
    further: float

    def seconds(self, tokens: float, size: int) -> float:
        """For so many tokens, with weights of `size` bytes."""
        return size / self.bytes_per_s * (1 + self.further * (tokens - 1))


@dataclass(frozen=True, slots=True)
class Rates:
    """Copying to the device in bytes per second, and computing here and there."""

    copy: float
    host: Pace
    device: Pace


def cheaper(tokens: float, size: int, rates: Rates) -> bool:
    """Whether copying one expert of `size` bytes and computing it on the device beats computing it on the CPU."""
    return size / rates.copy + rates.device.seconds(tokens, size) < rates.host.seconds(tokens, size)


def copied_from(size: int, rates: Rates) -> int | None:
    """The fewest tokens for which an expert of `size` bytes is copied to the device; None where it never pays."""
    return next((tokens for tokens in range(1, _MOST + 1) if cheaper(tokens, size, rates)), None)


def split(counts: Mapping[int, float], size: int, rates: Rates, busy: float = 0.0) -> tuple[list[int], float]:
    """Which experts, by number of tokens each, to copy while the CPU computes the rest, so that both end soon; and the
    seconds until then.

    Those with most tokens choose first. Copying the next one goes on while the device computes with the last; for its
    first `busy` seconds it computes with what it holds.
    """
    copied = []
    copying, computing, host = 0.0, busy, 0.0  # when each is free again
    for expert, tokens in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        uploaded = copying + size / rates.copy
        there = max(uploaded, computing) + rates.device.seconds(tokens, size)
        here = host + rates.host.seconds(tokens, size)
        if there < here:
            copied.append(expert)
            copying, computing = uploaded, there
        else:
            host = here
    return copied, max(computing, host)

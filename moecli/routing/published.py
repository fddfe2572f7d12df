"""What was published of Mixtral 8x7B's routing, and the same figures of a trace of that model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecli.routing.domains import domain_counts
from moecli.routing.temporal_locality import temporal_locality
from moecli.routing.trace import RoutingTrace

LOCALITY_SOURCE = "Mixtral of Experts, arXiv 2401.04088, table 5"
SHARES_SOURCE = "allenai/OLMoE, scripts/routing_output, 208,896 tokens per domain (Apache-2.0)"
LOCALITY_LAYERS = 0, 15, 31
SHARES_LAYERS = 0, 7, 15
_LAYERS, _EXPERTS, _ACTIVE = 32, 8, 2

# Percent of neighbouring tokens: the same first choice, then any choice in common, each at layers 0, 15 and 31.
_LOCALITY = {
    "ArXiv": (14.0, 27.9, 22.7, 46.5, 62.3, 52.9),
    "DM Mathematics": (14.1, 28.4, 19.7, 44.9, 67.0, 44.5),
    "Github": (14.9, 28.1, 19.7, 49.9, 66.9, 49.2),
    "Gutenberg": (13.9, 26.1, 26.3, 49.5, 63.1, 52.2),
    "PhilPapers": (13.6, 25.3, 22.1, 46.9, 61.9, 51.3),
    "PubMed Abstracts": (14.2, 24.6, 22.0, 48.6, 61.6, 51.8),
    "StackExchange": (13.6, 27.2, 23.6, 48.2, 64.6, 53.6),
    "Wikipedia (en)": (14.4, 23.6, 25.3, 49.8, 62.1, 51.8),
}
# Assignments of each expert at layers 0, 7 and 15.
_COUNTS = {
    "github": (
        (54849, 51938, 49502, 48693, 49404, 67714, 47790, 47902),
        (46007, 55830, 65025, 43974, 49527, 50369, 57534, 49526),
        (60067, 55928, 42926, 38592, 44435, 69374, 57189, 49281),
    ),
    "arxiv": (
        (55713, 52019, 52619, 50522, 44401, 66285, 44770, 51463),
        (51886, 50083, 56626, 44230, 52075, 54595, 49243, 59054),
        (61212, 52639, 40083, 25549, 60053, 61162, 60951, 56143),
    ),
    "c4": (
        (56947, 49733, 50426, 49453, 52127, 57956, 42632, 58518),
        (50706, 54716, 51313, 50515, 56215, 49525, 53315, 51487),
        (47396, 58718, 55366, 32510, 55049, 57385, 57170, 54198),
    ),
    "book": (
        (61757, 38476, 53272, 54508, 53206, 58897, 46027, 51649),
        (52663, 51909, 47850, 57151, 53293, 44006, 56645, 54275),
        (52928, 58049, 67604, 21046, 54795, 50104, 61478, 51788),
    ),
    "wikipedia": (
        (55572, 54544, 51270, 45513, 52827, 58134, 44526, 55406),
        (50223, 50031, 58650, 47647, 51069, 55063, 49734, 55375),
        (54575, 55396, 52142, 31960, 57664, 62114, 50943, 52998),
    ),
}


@dataclass(frozen=True, slots=True)
class LocalityRow:
    """One domain: shares of neighbouring tokens at each of LOCALITY_LAYERS. None where there are no pairs."""

    domain: str
    first: tuple[float | None, ...]  # the same first choice
    either: tuple[float | None, ...]  # a choice in common


@dataclass(frozen=True, slots=True)
class SharesRow:
    """One domain: each expert's share of the assignments, [SHARES_LAYERS][experts]; 0.125 is even."""

    domain: str
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Paper:
    """Mixtral 8x7B: published figures and those of a trace, whose domains are other texts of similar kinds."""

    published_locality: tuple[LocalityRow, ...]
    locality: tuple[LocalityRow, ...]
    published_shares: tuple[SharesRow, ...]
    shares: tuple[SharesRow, ...]
    random: tuple[float, float] = (1 / 8, 13 / 28)  # first, either


def paper(trace: RoutingTrace) -> Paper | None:
    """None unless the trace has the shape of Mixtral 8x7B: 32 layers, each 2 of 8 experts."""
    shapes = {(layer.experts, layer.active) for layer in trace.layers}
    if len(trace.layers) != _LAYERS or shapes != {(_EXPERTS, _ACTIVE)} or trace.family not in ("mixtral", ""):
        return None
    return Paper(
        tuple(
            LocalityRow(name, _fractions(row[:3]), _fractions(row[3:])) for name, row in _LOCALITY.items()
        ),
        tuple(_locality(trace, place) for place in range(len(trace.domains))),
        tuple(SharesRow(name, tuple(map(_shares, layers))) for name, layers in _COUNTS.items()),
        _measured_shares(trace),
    )  # fmt: skip


def _fractions(percent: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(number / 100, 4) for number in percent)


def _locality(trace: RoutingTrace, domain: int) -> LocalityRow:
    here = trace.follows & (trace.domain[1:] == domain)
    rows = [temporal_locality(trace.layers[layer], here) for layer in LOCALITY_LAYERS]
    return LocalityRow(trace.domains[domain], tuple(r.top1 for r in rows), tuple(r.any for r in rows))


def _measured_shares(trace: RoutingTrace) -> tuple[SharesRow, ...]:
    counts = [domain_counts(trace.layers[layer], trace) for layer in SHARES_LAYERS]
    return tuple(
        SharesRow(name, tuple(_shares(layer[place].tolist()) for layer in counts))
        for place, name in enumerate(trace.domains)
    )


def _shares(counts: tuple[int, ...] | list[int]) -> tuple[float, ...]:
    return tuple((np.asarray(counts) / max(sum(counts), 1)).tolist())

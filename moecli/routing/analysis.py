"""One trace analysed: all that a screen or a file shows of it, beside a second trace where one was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moecli.errors import MoecliError
from moecli.routing.agreement import Agreement, agreement
from moecli.routing.balance import OVERFLOW_FACTORS, overflow, uniform_counts
from moecli.routing.domains import DomainDistance, load_distances, units
from moecli.routing.published import Paper, paper
from moecli.routing.report import RoutingReport, report
from moecli.routing.trace import RoutingTrace
from moecli.store.progress import Progress, silent

_RUNS = 50  # simulated uniform routers


@dataclass(frozen=True, slots=True)
class RunMemory:
    """What the model takes in RAM to run with `context` tokens in this format, packed."""

    fixed: int  # bytes that every run needs, experts streamed from disk
    bytes_per_slot: int  # one expert in each layer
    full: int  # bytes with which nothing is read from disk
    context: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """Share of assignments dropped in each layer where no expert may take more than `factor` times the mean."""

    factor: float
    dropped: tuple[float, ...]
    baseline: tuple[float, ...]  # by a uniform router


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The trace beside another one. What cannot be compared is None, and `reason` says why."""

    name: str  # "tiny in q4"
    report: RoutingReport
    agreement: Agreement | None  # choice by choice, where both read the same text
    loads: tuple[DomainDistance, ...] | None  # per layer, of the two loads [2, 2], beside chance
    reason: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """Pure data: the trace for pictures of the text, the report for figures."""

    trace: RoutingTrace
    report: RoutingReport
    capacity: tuple[Capacity, ...]  # one for each factor asked for
    memory: RunMemory | None = None  # of the model, where it is at hand
    comparison: Comparison | None = None
    paper: Paper | None = None  # for Mixtral 8x7B
    note: str | None = None  # what the reader must know about how it was recorded
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model and its format: tiny in q4."""
        return _name(self.trace)

    @property
    def experts(self) -> tuple[int, ...]:
        """The number of experts of each layer."""
        return tuple(layer.experts for layer in self.trace.layers)

    @property
    def bytes_per_slot(self) -> int | None:
        """Bytes of one expert in each layer; None where the model is not at hand."""
        return None if self.memory is None else self.memory.bytes_per_slot

    @property
    def recommended_ram(self) -> int | None:
        """A `--ram` with as many slots per layer as the replay recommends, bytes."""
        if self.memory is None or self.report.verdict is None:
            return None
        wanted = self.memory.fixed + self.report.verdict.recommended_slots * self.memory.bytes_per_slot
        return min(wanted, self.memory.full)

    def text_of(self, token: int) -> str:
        """The text of the token at this place; its id where the text is unknown."""
        number = int(self.trace.ids[token])
        return self.trace.pieces.get(number, f"<{number}>")


def analyse(
    trace: RoutingTrace,
    *,
    factors: Sequence[float] = (),
    memory: RunMemory | None = None,
    other: RoutingTrace | None = None,
    note: str | None = None,
    provenance: Mapping[str, str] | None = None,
    watch: Progress = silent,
) -> Analysis:
    """Everything about `trace`, compared with `other`. Capacity `factors`: the usual ones if none are given; `watch` is
    told of layers."""
    return Analysis(
        trace,
        report(trace, watch=watch),
        tuple(_capacity(trace, factor) for factor in factors or OVERFLOW_FACTORS),
        memory,
        None if other is None else _compare(trace, other),
        paper(trace),
        note,
        provenance or {},
    )


def _capacity(trace: RoutingTrace, factor: float) -> Capacity:
    uniform = {
        shape: float(overflow(uniform_counts(*shape, trace.tokens, _RUNS), factor).mean())
        for shape in {(layer.experts, layer.active) for layer in trace.layers}
    }
    return Capacity(
        factor,
        tuple(float(overflow(layer.counts(), factor)) for layer in trace.layers),
        tuple(uniform[layer.experts, layer.active] for layer in trace.layers),
    )


def _compare(trace: RoutingTrace, other: RoutingTrace) -> Comparison:
    agreed, reason = None, None
    try:
        agreed = agreement(trace, other)
    except MoecliError as error:
        reason = error.message
    loads = None
    if [(a.layer, a.experts, a.active) for a in trace.layers] == [(b.layer, b.experts, b.active) for b in other.layers]:
        ours, theirs = units(trace), units(other)
        loads = load_distances(
            [ours.counts(layer) for layer in trace.layers],
            [theirs.counts(layer) for layer in other.layers],
            _same_prompts(trace, other),
        )
    return Comparison(_name(other), report(other), agreed, loads, reason)


def _same_prompts(one: RoutingTrace, other: RoutingTrace) -> bool:
    """Whether both read the same prompts, whatever each wrote after them."""
    read, too = ~one.generated, ~other.generated
    return all(
        np.array_equal(getattr(one, name)[read], getattr(other, name)[too]) for name in ("ids", "prompt", "domain")
    )


def _name(trace: RoutingTrace) -> str:
    return " in ".join(part for part in (trace.model or "a trace", trace.dtype) if part)

"""Several models side by side, one column each, in blocks as wide as the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from moecli.library.inspection import Report
from moecli.model.params import Counts
from moecli.model.spec import MLA, Mixture, ModelSpec
from moecli.output import tables, words
from moecli.units import format_bytes


def comparison(to: Console, reports: Sequence[Report], reference: Report) -> None:
    """The facts that tell models apart; the last row is the work per token against a dense model."""
    header = ["", *(report.model for report in reports)]
    rows = [[label, *(value(report) for report in reports)] for label, value in _ROWS.items()]
    rows.append(["cost per token *", *(_ratio(report.counts, reference.counts) for report in reports)])
    tables.show(to, *tables.blocks(to, header, rows), *_footnotes(reports, reference))


def _footnotes(reports: Sequence[Report], reference: Report) -> list[str]:
    dense = reference.model
    lines = [f"* active parameters, as a multiple of {dense}'s {reference.counts.active:,}."]
    for report in reports:
        if report.inventory is not None and report.inventory.differences:
            lines.append(f"{report.model}: {'; '.join(report.inventory.differences)}")
    return ["\n".join(lines)]


def _experts(report: Report) -> str:
    return _plus_shared(report, report.counts.experts)


def _active(report: Report) -> str:
    return _plus_shared(report, report.counts.active_experts)


def _plus_shared(report: Report, number: int) -> str:
    mixture = words.mixture_of(report.spec)
    shared = words.shared_experts(mixture) if mixture else 0
    return f"{number}+{shared}" if shared else f"{number}"


def _width(spec: ModelSpec) -> int:
    mixture = words.mixture_of(spec)
    if mixture is not None:
        return mixture.expert.intermediate_size
    return max(layer.ffn.intermediate_size for layer in spec.layers if not isinstance(layer.ffn, Mixture))


def _mixtures(spec: ModelSpec) -> int:
    return sum(isinstance(layer.ffn, Mixture) for layer in spec.blocks)


def _attention(spec: ModelSpec) -> str:
    kinds = {
        "recurrent" if layer.recurrent else words.attention_kind(layer.attention).upper()
        for layer in spec.blocks
        if layer.recurrent or isinstance(layer.attention, MLA) or layer.attention.heads
    }
    return "+".join(sorted(kinds))


def _stored(report: Report) -> str:
    size = report.stored_read_bytes_per_token
    return "-" if size is None else format_bytes(size)


def _ratio(counts: Counts, reference: Counts) -> str:
    return f"{counts.active / reference.active:.2f}x"


def billions(count: int) -> str:
    """A number of parameters as 46.70 B, of small models in millions."""
    return f"{count / 1e9:,.2f} B" if count >= 10**9 else f"{count / 1e6:,.1f} M"


_ROWS: dict[str, Callable[[Report], str]] = {
    "experts (+shared)": _experts,
    "active (+shared)": _active,
    "expert width": lambda r: f"{_width(r.spec):,}",
    "layers": lambda r: f"{len(r.spec.encoder) + len(r.spec.layers)}",
    "MoE layers": lambda r: f"{_mixtures(r.spec)}",
    "hidden size": lambda r: f"{r.spec.hidden_size:,}",
    "attention": lambda r: _attention(r.spec),
    "context": lambda r: f"{r.spec.context_length:,}",
    "vocabulary": lambda r: f"{r.spec.vocab_size:,}",
    "total params": lambda r: billions(r.counts.total),
    "active params": lambda r: billions(r.counts.active),
    "read/token, bf16": lambda r: format_bytes(r.read_bytes_per_token),
    "read/token, stored": _stored,
    "KV/token": lambda r: format_bytes(r.kv_bytes_per_token),
    "engine": lambda r: "yes" if r.runnable else "no",
}

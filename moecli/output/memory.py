"""How a memory estimate is shown: the sum with bars, where each part goes, formats in a table."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.library.inspection import Report
from moecli.output import tables, terminal
from moecli.planning.estimate import Estimate, Result
from moecli.planning.memory import read_bytes_per_token
from moecli.planning.placement import Plan, Tier
from moecli.units import figure, format_bytes, round_up


def screen(result: Result, report: Report, explain: bool, no_color: bool) -> None:
    """Print one format in detail, or all of them in a table; `explain` adds each term's formula.

    `report` tells what the published files hold, and whether they can be run.
    """
    to = tables.console(no_color)
    parts = [_title(result), _sum(to, result.chosen) if result.asked else _formats(result)]
    if explain:
        parts.append(_explanation(result.chosen))
    if result.asked:
        parts += [_placement(result), _verdict(result)]
    else:
        parts.append(Text(_machine(result)))
    if (words := _as_published(report)) is not None:
        parts.append(words)
    tables.show(to, *parts)


def largest_context(result: Result) -> None:
    """Print the longest context that fits: the number alone on stdout, what it means on stderr."""
    chosen = result.chosen.memory
    terminal.write(f"{result.max_context}\n")
    terminal.say(f"tokens of context that fit {_machine(result)}, {chosen.dtype}, batch {chosen.batch}")


def _tiers(plan: Plan) -> tuple[tuple[str, Tier], ...]:
    return ("device", plan.device), ("ram", plan.ram), ("disk", plan.disk)


def _title(result: Result) -> Text:
    memory = result.chosen.memory
    name = f"{result.model} in {memory.dtype}" if result.asked else result.model
    return tables.title(name, f"context {memory.context:,} tokens, batch {memory.batch}")


def _sum(to: Console, one: Estimate) -> RenderableType:
    peak = one.memory.peak
    width = 30 if to.width >= 70 else 12
    rows = [
        (term.name, format_bytes(term.bytes), tables.bar(to, term.bytes / peak, width))
        for term in one.memory.terms
        if term.bytes
    ]
    return tables.grid(("part", "bytes", "share"), [*rows, ("together", format_bytes(peak), "")], left=(0, 2))


def _formats(result: Result) -> RenderableType:
    header = ("format", "weights", "an expert", "KV cache", "in all", "fits", "tokens/s")
    rows = [
        (
            one.memory.dtype,
            format_bytes(one.memory.weights),
            format_bytes(one.memory.bytes_per_expert) if one.memory.expert_count else "-",
            format_bytes(one.memory.kv.bytes),
            format_bytes(one.memory.peak),
            "yes" if one.plan.fits else "no",
            _band(one.speed.low, one.speed.high),
        )
        for one in result.every
    ]
    return tables.grid(header, rows)


def _explanation(one: Estimate) -> RenderableType:
    return tables.facts(
        [(term.name, f"{term.bytes:,} = {term.formula}  [from {term.keys}]") for term in one.memory.terms if term.bytes]
    )


def _placement(result: Result) -> RenderableType:
    plan, total = result.chosen.plan, result.chosen.memory.expert_count
    names = {"device": "VRAM", "ram": "RAM", "disk": "disk"}
    rows = []
    for name, tier in _tiers(plan):
        held = [word for word, size in (("dense weights", tier.dense), ("KV cache", tier.kv)) if size]
        if tier.experts:
            held.append(f"{tier.experts:,} of {total:,} experts")
        if tier.total:
            rows.append((names[name], f"{format_bytes(tier.total)}: {', '.join(held) or 'the process'}"))
    return tables.facts(rows)


def _verdict(result: Result) -> Text:
    one = result.chosen
    plan, speed = one.plan, one.speed
    lines = [f"reads {format_bytes(read_bytes_per_token(result.spec, one.memory.dtype))} of weights for each token"]
    lines.append(
        f"expect {_band(speed.low, speed.high)} tokens/s, the first of a 512-token prompt after "
        f"{_band(speed.first_token_low_s, speed.first_token_high_s)} s ({speed.evidence} bandwidths)"
    )
    if result.budget.gpu and one.gpus_needed:
        lines.append(f"all of it in VRAM takes {one.gpus_needed} x {result.budget.gpu.name}")
    if plan.fits:
        lines.append(f"fits {_machine(result)}")
    else:
        short = format_bytes(plan.full_ram - plan.ram_budget)
        lines.append(f"does not fit {_machine(result)}: {short} short, the smallest --ram is {round_up(plan.full_ram)}")
        if one.memory.expert_count:
            lines.append(f"with experts read from disk as they are needed: {round_up(plan.least_ram)}")
    return Text("\n".join(lines))


def _machine(result: Result) -> str:
    plan, budget = result.chosen.plan, result.budget
    ram = f"{format_bytes(plan.ram_budget)} RAM" + ("" if budget.ram_given else " (free now)")
    if budget.gpu:
        return f"{budget.gpus} x {budget.gpu.name} and {ram}"
    return ram if budget.device is None else f"{format_bytes(budget.device)} VRAM and {ram}"


def _as_published(report: Report) -> Text | None:
    """Of what is not plain numbers, or does not run, so that the formats above are not taken for the files."""
    lines = []
    if report.quantised:
        size = f", {report.stored.bytes:,} bytes ({format_bytes(report.stored.bytes)})" if report.stored else ""
        lines.append(f"the weights are published in {report.quantised}{size}")
    if report.lacks:
        lines.append(f"this version cannot run them: it lacks {', '.join(report.lacks)}")
    return Text("\n".join(lines)) if lines else None


def _band(low: float, high: float) -> str:
    return f"{figure(low)} to {figure(high)}"

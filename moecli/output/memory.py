"""How a memory estimate is shown: the sum with bars, where each part goes, formats in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.library.advice import Advice, nearest, no_room
from moecli.library.inspection import Report
from moecli.library.resolve import Kind
from moecli.model.spec import ModelSpec
from moecli.output import tables, terminal
from moecli.planning.choice import SMALLEST
from moecli.planning.estimate import Estimate, Result
from moecli.planning.gpus import GPUS
from moecli.planning.memory import estimate_memory, read_bytes_per_token
from moecli.planning.placement import Plan, Tier
from moecli.planning.speed import Place, Source, Throughput, places
from moecli.units import figure, format_bytes, round_up

_FROM = {"vram": "in VRAM", "ram": "in RAM", "disk": "from disk", None: "no"}
_SOURCES: dict[Source, str] = {
    "measured": "measured here", "given": "as given", "maker": "as its maker prints it", "typical": "typical"
}  # fmt: skip
_NARROW, _WIDE = 60, 90  # columns below which a table leaves out what can be spared


@dataclass(frozen=True, slots=True)
class Subject:
    """One model: what it takes, what is known of it, and what to do with it here."""

    result: Result
    report: Report
    advice: Advice


def screen(subject: Subject, explain: bool, no_color: bool) -> None:
    """Print one format in detail, or all of them in a table; `explain` adds each term's formula."""
    to, result = tables.console(no_color), subject.result
    parts: list[RenderableType] = [_title(result)]
    if result.asked:
        parts += [tables.Facts([*_verdict(subject), *_ending(subject)]), _sum(to, result.chosen)]
    else:
        parts.append(_formats(to, subject))
    if explain:
        parts.append(_explanation(result.chosen))
    if result.asked:
        parts.append(_placement(result))
    else:
        rows = [("for", _machine(result)), *_recommendation(subject), *_figures(result), *_ending(subject)]
        parts.append(tables.Facts(rows))
    tables.show(to, *parts)


def comparison(subjects: Sequence[Subject], no_color: bool) -> None:
    """Print several models, a line each, in the format asked for or in the best for this machine."""
    to = tables.console(no_color)
    header: tuple[str, ...] = ("model", "format", "in all", "least RAM", "fits here", "tokens/s", "engine")
    rows = []
    for each in subjects:
        one = each.result.best or _smallest_of(each.result)
        runs = one.plan.runs and not each.advice.obstacle
        rows.append(
            (
                each.result.model, one.memory.dtype, format_bytes(one.memory.peak), format_bytes(least_ram(one.plan)),
                fits_here(one.plan, not each.advice.obstacle), figure(one.speed.middle) if runs else "-",
                "no" if each.report.lacks else "yes",
            )
        )  # fmt: skip
    left: tuple[int, ...] = (0, 1, 4)
    if to.width < _NARROW:
        header, rows, left = *_without(header, rows, 1, 2, 3, 5, 6), (0, 1)
    elif to.width < _WIDE:
        header, rows, left = *_without(header, rows, 3), (0, 1, 3)
    tables.show(to, tables.grid(header, rows, left=left), Text(_machine(subjects[0].result)))


def gpus(no_color: bool) -> None:
    """Print the GPUs that --gpu knows."""
    rows = [
        (each.name, format_bytes(each.memory), _gigabytes(each.bandwidth), f"{each.pcie}.0 x{each.lanes}")
        for each in GPUS.values()
    ]
    tables.show(tables.console(no_color), tables.grid(("--gpu", "memory", "bandwidth", "PCIe"), rows))


def largest_context(result: Result) -> None:
    """Print the longest context that fits: the number alone on stdout, what it means on stderr."""
    terminal.write(f"{result.max_context}\n")
    terminal.say(
        f"tokens of context that fit {_machine(result)}, {result.max_dtype}, batch {result.chosen.memory.batch}"
    )


def beyond(spec: ModelSpec, context: int | None) -> str | None:
    """A warning about a context that is longer than the model's own."""
    if context is None or context <= spec.context_length:
        return None
    return f"a context of {context:,} tokens is beyond the {spec.context_length:,} that the model was made for"


def least_ram(plan: Plan) -> int:
    """The smallest RAM budget that it runs in, with experts read from disk if need be."""
    return min(plan.least_ram, plan.full_ram)


def fits_here(plan: Plan | None, runnable: bool = True) -> str:
    """Whether a model runs on this machine, and from where; no, where it runs nowhere."""
    return f"yes, {_FROM[plan.runs_from]}" if plan is not None and plan.runs and runnable else "no"


def place(plan: Plan) -> str:
    """Where its experts are while it runs."""
    total = plan.memory.expert_count
    if plan.runs_from == "disk":
        return (
            f"with {plan.device.experts + plan.ram.experts:,} of {total:,} experts in memory, the others read from disk"
        )
    return {"vram": "in VRAM", "ram": "in RAM"}.get(plan.runs_from or "", "nowhere")


def speed(expected: Throughput) -> str:
    """The forecast for decoding: the middle, the band, and where it comes from."""
    return f"about {_middle_first(expected)} tokens/s, {evidence(expected)}"


def evidence(expected: Throughput) -> str:
    """Where a forecast comes from, and how to have a better one."""
    better = "; moecli doctor measures these" if expected.evidence == "typical" else ""
    return f"{expected.evidence} bandwidths{better}"


def _middle_first(expected: Throughput) -> str:
    return f"{figure(expected.middle)} ({_band(expected.low, expected.high)})"


def _without(header: Sequence[str], rows: Sequence[Sequence[str]], *columns: int) -> tuple[tuple[str, ...], list[Any]]:
    def rest(row: Sequence[str]) -> tuple[str, ...]:
        return tuple(cell for index, cell in enumerate(row) if index not in columns)

    return rest(header), [rest(row) for row in rows]


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


def _formats(to: Console, subject: Subject) -> RenderableType:
    result, obstacle = subject.result, subject.advice.obstacle
    fits = "would fit" if obstacle else "fits here"
    header: tuple[str, ...] = ("format", "weights", "an expert", "in all", "least RAM", fits, "tokens/s")
    rows = [
        (
            one.memory.dtype,
            format_bytes(one.memory.weights),
            format_bytes(one.memory.bytes_per_expert) if one.memory.expert_count else "-",
            format_bytes(one.memory.peak),
            format_bytes(least_ram(one.plan)),
            _FROM[one.plan.runs_from] if obstacle else fits_here(one.plan),
            _middle_first(one.speed) if one.plan.runs else "-",
        )
        for one in result.every
    ]
    left: tuple[int, ...] = (0, 5)
    if to.width < _NARROW:
        header, rows, left = *_without(header, rows, 1, 2, 4, 6), (0, 2)
    elif to.width < _WIDE:
        header, rows, left = *_without(header, rows, 2), (0, 4)
    return tables.grid(header, rows, left=left)


def _explanation(one: Estimate) -> RenderableType:
    return tables.Facts(
        [
            (term.name, f"{term.bytes:,} = {term.formula}" + (f"  [from {term.keys}]" if term.keys != "-" else ""))
            for term in one.memory.terms
            if term.bytes
        ]
    )


def _placement(result: Result) -> RenderableType:
    plan, total = result.chosen.plan, result.chosen.memory.expert_count
    names = {"device": "VRAM", "ram": "RAM", "disk": "disk"}
    rows = []
    for name, tier in _tiers(plan):
        dense = "input table" if name == "disk" else "dense weights"
        held = [word for word, size in ((dense, tier.dense), ("KV cache", tier.kv)) if size]
        if tier.experts:
            held.append(f"{tier.experts:,} of {total:,} experts")
        if tier.total:
            rows.append((names[name], f"{format_bytes(tier.total)}: {', '.join(held) or 'the process'}"))
    return tables.Facts(rows)


def _verdict(subject: Subject) -> list[tuple[str, str]]:
    """Whether it can be run at all and fits, from how much RAM on, how fast it will be: first of all."""
    result, obstacle = subject.result, subject.advice.obstacle
    one, plan = result.chosen, result.chosen.plan
    short = f", {format_bytes(least_ram(plan) - plan.ram_budget)} short" if not plan.runs else ""
    where = f": {place(plan).removeprefix('with ')}" if plan.runs_from == "disk" else ""
    streams = f"{round_up(plan.least_ram)} with experts read from disk, " if plan.least_ram < plan.full_ram else ""
    fits = _FROM[plan.runs_from] if obstacle else fits_here(plan)
    rows = [
        *([("engine", obstacle)] if obstacle else []),
        ("would fit" if obstacle else "fits here", f"{fits}{short}, on {_machine(result)}{where}"),
        (
            "least RAM",
            f"{streams}{round_up(plan.full_ram)} with all of it in {'memory' if plan.device.dense else 'RAM'}",
        ),
    ]
    if plan.runs:
        first = math.sqrt(one.speed.first_token_low_s * one.speed.first_token_high_s)
        band = _band(one.speed.first_token_low_s, one.speed.first_token_high_s)
        rows.append(("speed", speed(one.speed)))
        rows.append(("first token", f"after about {figure(first)} s ({band}) of a prompt of 512"))
        rows += _figures(result)
    rows.append(("reads", f"{format_bytes(read_bytes_per_token(result.spec, one.memory.dtype))} of weights per token"))
    if result.budget.gpu and one.gpus_needed:
        rows.append(("all in VRAM", f"takes {one.gpus_needed} x {result.budget.gpu.name}"))
    return rows


def _figures(result: Result) -> list[tuple[str, str]]:
    """What forecasts are made of, and where each figure comes from."""
    budget, bandwidths = result.budget, result.budget.bandwidths
    used = {place for one in result.every if one.plan.runs for place in places(one.plan)}
    card = budget.gpu.name if budget.gpu else budget.card.name if budget.card else "GPU"
    link = f"PCIe {budget.gpu.pcie}.0 x{budget.gpu.lanes}" if budget.gpu else "its link"
    known: tuple[tuple[Place, str, float], ...] = (
        ("ram", "RAM", bandwidths.ram),
        ("disk", "disk", bandwidths.disk),
        ("device", card, bandwidths.device),
        ("link", link, bandwidths.link),
    )
    by_source: dict[Source, list[str]] = {}
    for place, name, speed in known:
        if place in used:
            by_source.setdefault(getattr(bandwidths.sources, place), []).append(f"{name} {_gigabytes(speed)}")
    said = "; ".join(f"{', '.join(each)}: {_SOURCES[source]}" for source, each in by_source.items())
    return [("figures", said)] if said else []


def _gigabytes(bytes_per_s: float) -> str:
    return f"{figure(bytes_per_s / 1e9)} GB/s"


def _recommendation(subject: Subject) -> list[tuple[str, str]]:
    """The format to take here; nothing of what cannot be run."""
    best = subject.result.best
    if subject.advice.obstacle:
        return []
    if best is None:
        least = _smallest_of(subject.result)
        short = f"{least.memory.dtype} needs {round_up(least_ram(least.plan))} of RAM"
        return [("best here", f"none: {short}")]
    return [("best here", f"{best.memory.dtype}, {place(best.plan)}, {speed(best.speed)}")]


def _ending(subject: Subject) -> list[tuple[str, str]]:
    """What would be smaller, what the files are, whether they can be run at all, and what to type next."""
    result, report, advice = subject.result, subject.report, subject.advice
    rows: list[tuple[str, str]] = []
    if result.asked and not result.chosen.plan.fits and result.chosen.memory.dtype != SMALLEST:
        rows.append(("smaller", f"{SMALLEST}: {format_bytes(_smallest(result))} in all"))
    if warning := beyond(result.spec, result.chosen.memory.context):
        rows.append(("note", warning))
    rows += [("note", note) for note in _card_notes(result)]
    if report.quantised and report.source is not Kind.STORE:
        size = f", {report.stored.bytes:,} bytes ({format_bytes(report.stored.bytes)})" if report.stored else ""
        bits = f", {report.bits_per_weight:.2f} bits per weight" if report.bits_per_weight else ""
        rows.append(("files", f"published in {report.quantised}{size}{bits}"))
    if advice.obstacle:
        rows += [("engine", advice.obstacle)] * (not result.asked)  # else it is said first
    return rows + next_step(advice)


def _card_notes(result: Result) -> list[str]:
    """What a run does not do with the cards of this budget."""
    budget, notes = result.budget, list[str]()
    left = [one.memory.dtype for one in result.every if budget.device and budget.device_for(one.memory.dtype) is None]
    if left:
        notes.append(f"{', '.join(left)} would be unpacked on this GPU for every product: left to the processor")
    if budget.gpus > 1:
        notes.append(f"a run uses one GPU; this counts {budget.gpus} as one that is as large as all")
    return notes


def next_step(advice: Advice) -> list[tuple[str, str]]:
    """What to type next, and what that takes of network and disk; of what cannot be run, the nearest that can."""
    if advice.obstacle:
        other = nearest(advice)
        return [] if other is None else [("next", f"{other.command}"), ("", "the nearest model that runs here")]
    return [("next", advice.command), *_cost(advice)] if advice.command else []


def _smallest(result: Result) -> int:
    memory = result.chosen.memory
    return estimate_memory(result.spec, SMALLEST, memory.context, memory.batch).peak


def _smallest_of(result: Result) -> Estimate:
    return min(result.every, key=lambda one: least_ram(one.plan))


def _cost(advice: Advice) -> list[tuple[str, str]]:
    """What fetching takes of network and disk."""
    way = advice.way
    if way is None or not way.fetch:
        return []
    kept = f", keeps {format_bytes(way.keep)}" if way.packed else ""
    room = "" if way.has_room or not advice.here else f"; {no_room(way)}"
    return [("", f"fetches {format_bytes(way.fetch)}{kept}{room}")]


def _machine(result: Result) -> str:
    plan, budget = result.chosen.plan, result.budget
    ram = f"{format_bytes(plan.ram_budget)} RAM" + ("" if budget.ram_given else " (free now)")
    if budget.gpu:
        return f"{budget.gpus} x {budget.gpu.name} and {ram}"
    if budget.card:
        return f"{budget.card.name} ({format_bytes(budget.card.free)} free) and {ram}"
    return ram if budget.device is None else f"{format_bytes(budget.device)} VRAM and {ram}"


def _band(low: float, high: float) -> str:
    return f"{figure(low)} to {figure(high)}"

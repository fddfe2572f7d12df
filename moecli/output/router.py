"""What is known of a router without the model's weights, and what a look at it would take."""

from __future__ import annotations

import math

from rich.console import Console

from moecli.library.advice import Advice, nearest
from moecli.library.inspection import Report
from moecli.output import tables, words
from moecli.output.inspect import experts, layers
from moecli.output.memory import evidence, least_ram, place
from moecli.routing.cost import Look
from moecli.units import figure, format_bytes


def screen(to: Console, report: Report, advice: Advice, look: Look | None) -> None:
    """The rule by which it chooses, what that means for a token, and the way to see it at work."""
    spec = report.spec
    mixture = words.mixture_of(spec)
    if mixture is None:
        return
    rule, mixtures = mixture.router, len(spec.mixtures)
    rows = [
        ("router", words.router(rule)),
        ("experts", experts(spec, mixture)),
        ("layers", layers(spec)),
        ("a token", f"passes {rule.top_k * mixtures:,} of {rule.experts * mixtures:,} experts, {rule.top_k} a layer"),
        ("uniform", f"each expert would take {tables.percent(rule.top_k / rule.experts)} of the tokens"),
    ]
    now = [("now", "moecli inspect tiny --routing"), ("", "of the built-in model, at once")]
    title = tables.title(report.model, "its router, by its configuration alone")
    tables.show(to, title, tables.Facts(rows), tables.Facts([*_look(advice, look), *now]))


def _look(advice: Advice, look: Look | None) -> list[tuple[str, str]]:
    """What a real look takes of disk, memory and time, and the commands for it."""
    way = advice.way
    if advice.obstacle:
        other = nearest(advice)
        instead = [("instead", f"{other.command}"), ("", "the nearest model that runs here")] if other else []
        return [("a real look", advice.obstacle), *instead]
    if way is None or look is None:
        return [("a real look", "takes more memory than is free here")]
    guess = "" if look.counted else "about "
    rows = [
        ("a real look", f"reads {look.prompts} short passages, {guess}{look.tokens:,} tokens, each layer once for all"),
        ("memory", f"{format_bytes(least_ram(way.plan))} at least; here {place(way.plan)}"),
        ("time", f"{_duration(look)}, {evidence(look.time)}"),
    ]
    if advice.command is None:  # its weights are nowhere that is known
        return rows
    kept = f", keeps {format_bytes(way.keep)} in {way.dtype}" if way.packed else f" in {way.dtype}"
    room = f"; {format_bytes(way.room)} at most meanwhile, {format_bytes(way.free)} are free"
    rows.insert(1, ("disk", f"fetches {format_bytes(way.fetch)}{kept}{room}"))
    return [*rows, ("then", advice.command), ("", f"moecli inspect {advice.ref.typed} --routing")]


def _duration(look: Look) -> str:
    low, high = look.time.first_token_low_s, look.time.first_token_high_s
    middle = math.sqrt(low * high)
    unit, size = next((each for each in (("hours", 3600), ("minutes", 60)) if middle >= 2 * each[1]), ("seconds", 1))
    return f"about {figure(middle / size)} {unit} ({figure(low / size)} to {figure(high / size)})"

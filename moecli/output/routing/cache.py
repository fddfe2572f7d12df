"""What a cache of experts would do: hit rates by slots, and whether it pays here."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.text import Text

from moecli.output import tables
from moecli.routing.analysis import Analysis
from moecli.units import format_bytes, round_up


def parts(to: Console, analysis: Analysis) -> list[RenderableType]:
    """Hit rates and the verdict; nothing where nothing was replayed."""
    found = table(analysis)
    return [] if found is None else [*tables.blocks(to, *found), Text("\n".join(sentences(analysis)))]


def table(analysis: Analysis) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: each policy's hit rate by slots in each layer."""
    replay, size = analysis.report.replay, analysis.bytes_per_slot
    if replay is None:
        return None
    rows = [[curve.policy, *map(tables.percent, curve.hit_rates)] for curve in replay.curves]
    rows.append(["chance", *(tables.percent(slots / replay.experts) for slots in replay.slots)])
    if size is not None:
        rows.append(["experts take", *(format_bytes(slots * size) for slots in replay.slots)])
    return ["hit rate", *(f"{slots}/{replay.experts}" for slots in replay.slots)], rows


def sentences(analysis: Analysis) -> list[str]:
    """Whether caching pays here, what to keep, and what that is known from; empty where nothing was replayed."""
    replay, verdict = analysis.report.replay, analysis.report.verdict
    if replay is None or verdict is None:
        return []
    if verdict.pays is None:
        return [
            f"No verdict on caching: {replay.tokens:,} tokens were replayed, and below {verdict.fewest_tokens:,} it "
            "would hang on how the slots fill."
        ]
    rate, chance, best = map(tables.percent, (verdict.hit_rate, verdict.by_chance, verdict.best_possible))
    answer = "Caching experts pays here" if verdict.pays else "Caching experts hardly pays here"
    ram = analysis.recommended_ram
    asked = f" (--ram {round_up(ram)})" if ram is not None else ""
    what = "generated tokens" if replay.generated_only else "tokens, each as if it were generated"
    part = f" of {replay.tokens_in_trace:,}" if replay.tokens < replay.tokens_in_trace else ""
    return [
        f"{answer}: with {verdict.slots} of {replay.experts} experts of each layer kept, the wanted one is there "
        f"{rate} of the time; random baseline {chance}, at best {best}.",
        f"Recommended: keep {verdict.recommended_slots} of {replay.experts}{asked}, there "
        f"{tables.percent(verdict.recommended_hit_rate)} of the time.",
        f"Replayed: {replay.tokens:,}{part} {what}, in {len(replay.layers)} of {replay.layers_in_trace} layers.",
    ]

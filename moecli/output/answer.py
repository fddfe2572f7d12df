"""What is said of an answer when it has ended: statistics, and whether other programs took the processors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.engine.answer import Answer
from moecli.output import tables
from moecli.planning import machine
from moecli.units import format_bytes

if TYPE_CHECKING:
    from moecli.engine.loaded import LoadedModel


def tell_statistics(loaded: LoadedModel, answer: Answer) -> None:
    """On stderr, dim."""
    tables.whisper(*statistics(loaded, answer))
    team = loaded.opened.team
    if team.fewest < team.most:
        used = f"{team.fewest} of {team.most} threads"
        tables.whisper(f"at times {used} computed: other programs take the processors", f"{used}: others are busy")


def statistics(loaded: LoadedModel, answer: Answer) -> tuple[str, ...]:
    """prompt 5 tokens, 311 tok/s; answer 64 tokens, 182 tok/s; peak memory 391 MiB (planned 402 MiB)

    Then shorter ways to say it, for a narrow terminal.
    """
    timing = answer.timing
    cached = f" ({timing.cached_tokens} cached)" if timing.cached_tokens else ""
    prompt = f"prompt {timing.prompt_tokens} tokens{cached}{_rate(timing.prefill_rate)}"
    said = f"answer {len(answer.token_ids)} tokens{_rate(timing.decode_rate)}"
    guessed = f" ({timing.drafted_right} of {timing.drafted} guesses right)" if timing.drafted else ""
    peak, planned = format_bytes(machine.peak_rss()), format_bytes(loaded.plan.ram.total)
    return (
        f"{prompt}; {said}{guessed}; peak memory {peak} (planned {planned})",
        f"{prompt}; {said}; {peak} of {planned}",
        f"{prompt}; {said}",
        said,
    )


def _rate(rate: float | None) -> str:
    if rate is None:
        return ""
    return f", {rate:.0f} tok/s" if rate >= 10 else f", {rate:.2f} tok/s"

"""What is said of an answer when it has ended: statistics, and whether other programs took the processors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecli.engine.answer import Answer
from moecli.output import tables
from moecli.planning import machine
from moecli.text.spans import filled, sentinels, spans
from moecli.units import format_bytes

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession
    from moecli.engine.loaded import LoadedModel, OpenedModel


def tell_statistics(loaded: LoadedModel, answer: Answer) -> None:
    """On stderr, dim."""
    tables.whisper(*statistics(loaded, answer))
    team = loaded.opened.team
    if team.fewest < team.most:
        used = f"{team.fewest} of {team.most} threads"
        tables.whisper(f"at times {used} computed: other programs take the processors", f"{used}: others are busy")


def gaps(opened: OpenedModel, prompt: str) -> str | None:
    """What a model that fills gaps is for, where a prompt has none; None for the others."""
    if not opened.spec.encoder:
        return None
    names = list(sentinels(opened.tokenizer).values())
    if any(name in prompt for name in names):
        return None
    how = f"write {', '.join(names[:2])}, ... where text is missing" if names else "its tokenizer has no names for them"
    return f"{opened.name} fills gaps in a text, it neither answers nor goes on: {how}"


def tell_filled(session: ChatSession, answer: Answer) -> None:
    """The prompt with its gaps filled, dim on stderr, where it has some."""
    tokenizer = session.loaded.opened.tokenizer
    if session.fills_spans and any(name in answer.prompt for name in sentinels(tokenizer).values()):
        tables.whisper(filled(answer.prompt, spans(tokenizer, answer.prompt, answer.token_ids)))


def statistics(loaded: LoadedModel, answer: Answer) -> tuple[str, ...]:
    """prompt 5 tokens, 311 tok/s; answer 64 tokens, 182 tok/s; peak memory 391 MiB (planned 402 MiB)

    Then shorter ways to say it, for a narrow terminal.
    """
    timing = answer.timing
    cached = f" ({timing.cached_tokens} cached)" if timing.cached_tokens else ""
    dropped = f", {timing.dropped:.1%} dropped by full experts" if timing.dropped else ""
    prompt = f"prompt {timing.prompt_tokens} tokens{cached}{_rate(timing.prefill_rate)}{dropped}"
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

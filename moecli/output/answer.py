"""How an answer is reported: one statistics line for people, one document for scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moecli.engine.answer import Answer
from moecli.planning import machine
from moecli.units import format_bytes

if TYPE_CHECKING:
    from moecli.engine.runner import Runner


def statistics(runner: Runner, answer: Answer) -> str:
    """prompt 5 tokens, 311 tok/s · answer 64 tokens, 182 tok/s · peak memory 391 MiB (planned 402 MiB)"""
    timing = answer.timing
    cached = f" ({timing.cached_tokens} cached)" if timing.cached_tokens else ""
    parts = (
        f"prompt {timing.prompt_tokens} tokens{cached}{_rate(timing.prefill_rate)}",
        f"answer {len(answer.token_ids)} tokens{_rate(timing.decode_rate)}",
        f"peak memory {format_bytes(machine.peak_rss())} (planned {format_bytes(runner.loaded.plan.ram.total)})",
    )
    return " · ".join(parts)


def _rate(rate: float | None) -> str:
    if rate is None:
        return ""
    return f", {rate:.0f} tok/s" if rate >= 10 else f", {rate:.2f} tok/s"


def document(runner: Runner, answer: Answer) -> dict[str, Any]:
    """`run --json`: the keys of the command-line contract."""
    timing, loaded = answer.timing, runner.loaded
    plan = loaded.plan
    return {
        "schema_version": 1,
        "model": runner.name,
        "dtype": runner.dtype,
        "device": str(runner.device),
        "context": plan.memory.context,
        "seed": runner.seed,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_tokens": timing.prompt_tokens,
        "completion_tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "prefill_s": timing.prefill_s,
        "decode_s": timing.decode_s,
        "prefill_tokens_per_s": timing.prefill_rate,
        "decode_tokens_per_s": timing.decode_rate,
        "peak_rss_bytes": machine.peak_rss(),
        "planned_bytes": {"device": plan.device.total, "ram": plan.ram.total, "disk": plan.disk.total},
        "expert_cache": asdict(loaded.session.decoder.experts.statistics),
    }

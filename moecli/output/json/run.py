"""`run --json`: the answer, how long it took, and what it took in memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from moecli.engine.answer import Answer
from moecli.engine.sampling import TokenScore
from moecli.output.json import SCHEMA_VERSION
from moecli.output.json.shared import planned_bytes
from moecli.planning import machine
from moecli.text.answers import parted
from moecli.text.spans import filled, spans

if TYPE_CHECKING:
    from moecli.engine.chat import ChatSession


def document(session: ChatSession, answer: Answer) -> dict[str, Any]:
    """The answer so far, where it was interrupted."""
    timing, loaded = answer.timing, session.loaded
    return {
        "schema_version": SCHEMA_VERSION,
        "model": loaded.name,
        "dtype": loaded.dtype,
        "device": str(loaded.device),
        "context": loaded.plan.memory.context,
        "seed": session.config.seed,
        **_texts(answer),
        "token_ids": answer.token_ids,
        **_scored(session, answer),
        "prompt_tokens": timing.prompt_tokens,
        "cached_tokens": timing.cached_tokens,
        "completion_tokens": len(answer.token_ids),
        "drafted_tokens": timing.drafted,
        "drafted_tokens_right": timing.drafted_right,
        "finish_reason": answer.finish_reason,
        "prefill_s": timing.prefill_s,
        "decode_s": timing.decode_s,
        "prefill_tokens_per_s": timing.prefill_rate,
        "decode_tokens_per_s": timing.decode_rate,
        "peak_rss_bytes": machine.peak_rss(),
        "planned_bytes": planned_bytes(loaded.plan),
        "expert_cache": asdict(loaded.decoder.experts.statistics),
        **_filled(session, answer),
    }


def _texts(answer: Answer) -> dict[str, Any]:
    """The answer and, where the model reasons before it, that apart."""
    if not answer.style.reasons:
        return {"text": answer.text}
    reasoning, said = parted(answer.style, answer.text)
    return {"text": said, "reasoning": reasoning}


def _scored(session: ChatSession, answer: Answer) -> dict[str, Any]:
    """The log-probability of each token, and of the likeliest in its place, where they were asked for."""
    if session.config.top_logprobs is None:
        return {}
    tokenizer = session.loaded.opened.tokenizer

    def named(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token_id": token_id,
            "token": tokenizer.decode([token_id], skip_special=False),
            "logprob": logprob,
        }

    def scored(each: TokenScore) -> dict[str, Any]:
        return named(each.token_id, each.logprob) | {"top": [named(*other) for other in each.top]}

    found = {"logprobs": list(map(scored, answer.scores[: len(answer.token_ids)]))}
    if session.config.echo:
        first = [{**named(token, 0.0), "logprob": None, "top": []} for token in answer.prompt_ids[:1]]
        found["prompt_logprobs"] = first + list(map(scored, answer.prompt_scores))
    return found


def _filled(session: ChatSession, answer: Answer) -> dict[str, Any]:
    """Of a model that fills spans: these, the whole text, and the share of the prompt that full experts dropped."""
    if not session.fills_spans:
        return {}
    tokenizer = session.loaded.opened.tokenizer
    found = spans(tokenizer, answer.prompt, answer.token_ids)
    return {
        "spans": [asdict(span) for span in found],
        "filled_text": filled(answer.prompt, found),
        "dropped_share": answer.timing.dropped,
    }

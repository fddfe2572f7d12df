"""`perplexity --json`: the loss and perplexity of a text with their errors, what they are over, and what that took."""

from __future__ import annotations

import math
from typing import Any

from moecli.engine.decoder import Decoder
from moecli.engine.estimates import Estimate
from moecli.engine.likelihood import Likelihood
from moecli.engine.windows import Cut
from moecli.output.json import SCHEMA_VERSION
from moecli.output.json.shared import planned_bytes
from moecli.planning import machine
from moecli.planning.placement import Plan


def document(
    name: str, plan: Plan, decoder: Decoder, found: Likelihood, cut: Cut | None, read_s: float
) -> dict[str, Any]:
    """One model on one text."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": name,
        "dtype": plan.memory.dtype,
        "device": str(decoder.device),
        **likelihood(found),
        **windows(found, cut),
        "read_s": read_s,
        "tokens_per_s": found.tokens / read_s,
        "peak_rss_bytes": machine.peak_rss(),
        "planned_bytes": planned_bytes(plan),
        "bytes_read": decoder.experts.statistics.bytes_read,
    }


def likelihood(found: Likelihood) -> dict[str, Any]:
    """Perplexity and mean loss in nats."""
    return {
        "perplexity": finite(found.perplexity.value),
        "perplexity_error": finite(found.perplexity.error),
        "loss": found.loss.value,
        "loss_error": found.loss.error,
    }


def windows(found: Likelihood, cut: Cut | None) -> dict[str, Any]:
    """What was read, and how the text was cut: null where windows or prompts were given."""
    return {
        "tokens": found.tokens,
        "scored_tokens": found.scored,
        "windows": found.windows,
        "window_tokens": None if cut is None else cut.size,
        "stride_tokens": None if cut is None else cut.stride,
        "before_ids": None if cut is None else list(cut.before),
    }


def estimate(name: str, of: Estimate) -> dict[str, float | None]:
    """A figure and its standard error; null where there is one observation."""
    return {name: of.value, f"{name}_error": of.error}


def finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None

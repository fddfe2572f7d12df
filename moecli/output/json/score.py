"""`score --json`: the log-probability of each answer, of its tokens, and its share among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moecli.engine.loaded import LoadedModel
from moecli.engine.score import Labels, LabelScore, shares
from moecli.output.json import SCHEMA_VERSION


def document(loaded: LoadedModel, labels: Labels, scores: Sequence[LabelScore]) -> dict[str, Any]:
    """The labels in the order in which they were named."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": loaded.name,
        "dtype": loaded.dtype,
        "prompt_tokens": len(labels.prompt),
        "best": max(scores, key=lambda each: each.logprob).name,
        "labels": [
            {
                "label": each.name,
                "logprob": each.logprob,
                "share": share,
                "token_ids": list(each.token_ids),
                "token_logprobs": list(each.logprobs),
            }
            for each, share in zip(scores, shares(scores), strict=True)
        ],
    }

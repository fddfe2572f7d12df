"""What a look at a router would take, before anything of the model is here: tokens to read, and how long that lasts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.errors import MoecliError
from moecli.hub import cache as hub_cache
from moecli.library.advice import Advice
from moecli.library.resolve import ModelRef
from moecli.planning.placement import fit_layerwise
from moecli.planning.speed import Throughput, estimate_throughput
from moecli.routing.prompts import Prompt

if TYPE_CHECKING:
    from moecli.text.tokenizer import Tokenizer

_LETTERS = 4  # to a token, in usual text and vocabularies


@dataclass(frozen=True, slots=True)
class Look:
    """Reading a set of prompts layer by layer, in the format to take here. `time`: the wait for its end.

    `counted`: by the model's own tokenizer, else guessed.
    """

    prompts: int
    tokens: int
    counted: bool
    time: Throughput


def look(advice: Advice, prompts: Sequence[Prompt]) -> Look | None:
    """None where this machine's memory holds the model in no format."""
    if advice.way is None:
        return None
    tokenizer = _tokenizer(advice.ref)
    texts = [prompt.text for prompt in prompts]
    lengths = [len(tokenizer.encode(text)) if tokenizer else len(text) // _LETTERS + 1 for text in texts]
    tokens, budget = sum(lengths), advice.budget
    dtype = advice.way.dtype
    plan = fit_layerwise(advice.spec, dtype, max(lengths), tokens, budget.ram, True, budget.device_for(dtype))
    time = estimate_throughput(advice.spec, plan, budget.bandwidths, prompt=tokens)
    return Look(len(prompts), tokens, tokenizer is not None, time)


def _tokenizer(ref: ModelRef) -> Tokenizer | None:
    """That of a configuration's folder or of what is in the cache; None where none is at hand."""
    from moecli.text.tokenizer import Tokenizer

    cached = hub_cache.snapshots(ref.repo, ref.revision) if ref.repo else ()
    for folder in (*([ref.file.parent] if ref.file else []), *cached):
        with suppress(MoecliError):
            return Tokenizer.load(folder)
    return None

"""What a look at a router would take, before anything of the model is here: tokens to read, and how long that lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecli.library.advice import Advice
from moecli.planning.placement import fit_layerwise
from moecli.planning.speed import Throughput, estimate_throughput
from moecli.routing.prompts import Prompt

_LETTERS = 4  # to a token, in usual text and vocabularies


@dataclass(frozen=True, slots=True)
class Look:
    """Reading a set of prompts layer by layer, in the format to take here. `time`: the wait for its end."""

    prompts: int
    tokens: int
    time: Throughput


def look(advice: Advice, prompts: Sequence[Prompt]) -> Look | None:
    """None where this machine's memory holds the model in no format."""
    if advice.way is None:
        return None
    lengths = [len(prompt.text) // _LETTERS + 1 for prompt in prompts]
    tokens, budget = sum(lengths), advice.budget
    plan = fit_layerwise(advice.spec, advice.way.dtype, max(lengths), tokens, budget.ram, True, budget.device)
    time = estimate_throughput(advice.spec, plan, budget.bandwidths, prompt=tokens)
    return Look(len(prompts), tokens, time)

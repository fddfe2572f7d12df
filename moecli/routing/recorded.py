"""A trace together with what only its model can say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecli.errors import ConfigError
from moecli.formats.words import is_dtype
from moecli.model.spec import ModelSpec, Scoring
from moecli.planning.memory import default_context, estimate_memory
from moecli.planning.placement import place
from moecli.routing.analysis import RunMemory
from moecli.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class Recorded:
    """`memory` is what the model takes to run, `note` what the reader must know; None without the model."""

    trace: RoutingTrace
    memory: RunMemory | None = None
    note: str | None = None


def require_router(name: str, spec: ModelSpec) -> None:
    """ConfigError for a dense model."""
    if not spec.mixtures:
        raise ConfigError(f"'{name}' has no routed experts, so there is no routing to see", f"moecli inspect {name}")


def described(trace: RoutingTrace, spec: ModelSpec) -> Recorded:
    """The trace of a model, with what that takes in memory in the trace's format."""
    context = default_context(spec)
    plan = place(estimate_memory(spec, trace.dtype if is_dtype(trace.dtype) else "bf16", context), 0)
    memory = RunMemory(plan.least_ram, plan.memory.slot_bytes * len(spec.mixtures), plan.full_ram, context)
    routers = [mixture.router for _, mixture in spec.mixtures]
    note = None
    if any(router.scoring is Scoring.SIGMOID for router in routers):
        note = "the router scores each expert by itself; gate probabilities are these scores divided by their sum"
    elif limit := routers[0].capacity:
        note = f"an expert takes {limit} tokens of a text: {dropped(trace):.1%} of the choices were dropped"
    return Recorded(trace, memory, note)


def dropped(trace: RoutingTrace) -> float:
    """The share of choices that weigh nothing, since their expert was full."""
    weights = [layer.weights for layer in trace.layers if layer.weights is not None]
    return float(np.mean([(each == 0).mean() for each in weights])) if weights else 0.0

"""A trace together with what only its model can say."""

from __future__ import annotations

from dataclasses import dataclass

from moecli.errors import ConfigError
from moecli.formats import FORMATS
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
    plan = place(estimate_memory(spec, trace.dtype if trace.dtype in FORMATS else "bf16", context), 0)
    memory = RunMemory(plan.least_ram, plan.memory.slot_bytes * len(spec.mixtures), plan.full_ram, context)
    by_itself = any(mixture.router.scoring is Scoring.SIGMOID for _, mixture in spec.mixtures)
    note = "the router scores each expert by itself; gate probabilities are these scores divided by their sum"
    return Recorded(trace, memory, note if by_itself else None)

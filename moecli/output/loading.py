"""What `run` says before the answer: the plan and how it was made, what speed to expect, and how loading goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moecli.output import terminal
from moecli.units import figure, format_bytes

if TYPE_CHECKING:
    from moecli.planning.placement import Plan, Tier
    from moecli.planning.speed import Throughput


def explain(plan: Plan) -> str:
    """The plan in words, a line each: every term of the sum, the budget, and what lies where."""
    need = plan.memory
    lines = [f"{need.dtype}, context {need.context:,}, prompt in chunks of {need.chunk:,}"]
    lines += [f"  {term.name:<15} {format_bytes(term.bytes):>9} = {term.formula}" for term in need.terms if term.bytes]
    lines.append(f"  RAM budget {format_bytes(plan.ram_budget)}; all in RAM takes {format_bytes(plan.full_ram)}")
    for name, tier in (("device", plan.device), ("RAM", plan.ram)):
        if tier.total:
            lines.append(f"  {name}: {_tier(plan, tier)}")
    if plan.disk.experts:
        lines.append(f"  disk: {plan.disk.experts:,} of {need.expert_count:,} experts")
    return "\n".join(lines)


def _tier(plan: Plan, tier: Tier) -> str:
    held = [
        f"{word} {format_bytes(size)}"
        for word, size in (
            ("process", tier.process), ("dense weights", tier.dense), ("KV cache", tier.kv),
            ("activations", tier.activations), ("staging", tier.staging),
        )
        if size
    ]  # fmt: skip
    if tier.experts:
        held.append(f"{tier.experts:,} of {plan.memory.expert_count:,} experts {format_bytes(tier.expert_bytes)}")
    return f"{format_bytes(tier.total)} = {' + '.join(held)}"


def expectation(plan: Plan, speed: Throughput) -> str:
    """One line: what is read from disk, and how fast that will be."""
    return (
        f"{plan.disk.experts:,} of {plan.memory.expert_count:,} experts stay on disk: expect about "
        f"{figure(speed.middle)} tokens/s ({figure(speed.low)} to {figure(speed.high)}, {speed.evidence} bandwidths)"
    )


@contextmanager
def progress(name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A line that stands on a terminal while weights are read or packed, and is gone after."""
    with terminal.Line(quiet) as line:
        line.show("loading ...")
        yield lambda done, total: line.show(f"packing {name}: expert {done:,} of {total:,}")


@contextmanager
def reading(name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A line that stands on a terminal while prompts are read, and is gone after."""
    with terminal.Line(quiet) as line:
        yield lambda done, total: line.show(f"{name} reads: {done:,} of {total:,} tokens")

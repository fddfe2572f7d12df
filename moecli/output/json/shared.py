"""What several documents say alike: the plan in bytes, and a range of speeds."""

from __future__ import annotations

from typing import Any

from moecli.planning.placement import Plan
from moecli.planning.speed import Throughput


def planned_bytes(plan: Plan) -> dict[str, int]:
    """What each place holds by plan, in bytes."""
    return {"device": plan.device.total, "ram": plan.ram.total, "disk": plan.disk.total}


def speed(expected: Throughput) -> dict[str, Any]:
    """The range that decoding is expected in, and what that is known from."""
    return {
        "low": expected.low,
        "middle": expected.middle,
        "high": expected.high,
        "unit": "tokens_per_s",
        "evidence": expected.evidence,
    }

"""`memory --json`: what a model takes, where it goes and how fast it will be, in one format or in all of them."""

from __future__ import annotations

from typing import Any

from moecli.library.advice import Advice
from moecli.library.inspection import Report
from moecli.output.json import SCHEMA_VERSION, shared
from moecli.planning.estimate import Budget, Estimate, Result
from moecli.planning.memory import kv_bytes_per_token, read_bytes_per_token
from moecli.planning.placement import Tier
from moecli.planning.speed import Place


def document(result: Result, report: Report, advice: Advice) -> dict[str, Any]:
    """The chosen format in detail; `formats` has the same of every format where none was asked for.

    `recommended` is the format to take on this machine, null where none runs.
    """
    card = result.budget.gpu or result.budget.card
    every = [] if result.asked else [_facts(result, each) for each in result.every]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": result.model,
        **_facts(result, result.chosen),
        "gpu": None if card is None else card.name,
        "bandwidths": _bandwidths(result.budget),
        "max_context": result.max_context,
        "max_context_dtype": result.max_dtype,
        "recommended": None if result.best is None or advice.obstacle else _recommended(result.best, advice),
        "obstacle": advice.obstacle,
        "runnable": report.runnable,
        "lacks": list(report.lacks),
        "stored_bytes": report.stored.bytes if report.stored else None,
        "stored_format": report.stored.format if report.stored else None,
        "bits_per_weight": None if report.bits_per_weight is None else round(report.bits_per_weight, 4),
        "formats": every,
    }


def _facts(result: Result, one: Estimate) -> dict[str, Any]:
    memory, plan, speed = one.memory, one.plan, one.speed
    return {
        "dtype": memory.dtype,
        "context": memory.context,
        "batch": memory.batch,
        "weights_bytes": memory.weights,
        "resident_bytes": memory.dense.bytes,
        "expert_bytes": memory.experts.bytes,
        "bytes_per_expert": memory.bytes_per_expert,
        "kv_cache_bytes": memory.kv.bytes,
        "kv_bytes_per_token": kv_bytes_per_token(result.spec),
        "activation_bytes": memory.activations.bytes,
        "total_bytes": memory.total,
        "process_bytes": memory.process.bytes,
        "peak_rss_bytes": plan.ram.total,
        "read_bytes_per_token": read_bytes_per_token(result.spec, memory.dtype),
        "ram_budget_bytes": plan.ram_budget,
        "vram_budget_bytes": plan.device_budget,
        "plan": {"device": _tier(plan.device), "ram": _tier(plan.ram), "disk": _tier(plan.disk)},
        "fits": plan.fits,
        "fits_here": plan.runs_from,
        "least_ram_bytes": min(plan.least_ram, plan.full_ram),
        "smallest_ram_bytes": plan.full_ram,
        "gpus_needed": one.gpus_needed,
        "speed": {
            **shared.speed(speed),
            "first_token_low_s": speed.first_token_low_s,
            "first_token_high_s": speed.first_token_high_s,
        },
    }


def _bandwidths(budget: Budget) -> dict[str, dict[str, Any]]:
    """What forecasts are made of: "source" is measured (here), given, maker (of the named GPU) or typical."""
    known: tuple[Place, ...] = ("ram", "disk") if budget.device is None else ("ram", "disk", "device", "link")
    found = budget.bandwidths
    return {place: {"bytes_per_s": getattr(found, place), "source": getattr(found.sources, place)} for place in known}


def _recommended(best: Estimate, advice: Advice) -> dict[str, Any]:
    way = advice.way
    return {
        "dtype": best.memory.dtype,
        "fits_here": best.plan.runs_from,
        "command": advice.command,
        "download_bytes": way.fetch if way else None,
        "disk_bytes": way.room if way else None,
        "speed": shared.speed(best.speed),
    }


def _tier(tier: Tier) -> dict[str, int]:
    return {
        "dense_bytes": tier.dense,
        "kv_bytes": tier.kv,
        "activation_bytes": tier.activations,
        "process_bytes": tier.process,
        "staging_bytes": tier.staging,
        "experts": tier.experts,
        "expert_bytes": tier.expert_bytes,
        "total_bytes": tier.total,
    }

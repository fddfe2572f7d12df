"""`bench --json`: what was measured, beside the forecast for it."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from moecli.formats.words import formats_of
from moecli.kernels.choice import chosen
from moecli.output.json import SCHEMA_VERSION
from moecli.output.json.shared import planned_bytes
from moecli.planning import machine
from moecli.planning.memory import read_bytes_per_token

if TYPE_CHECKING:
    from moecli.engine.bench import Result
    from moecli.engine.loaded import LoadedModel


def document(loaded: LoadedModel, result: Result) -> dict[str, Any]:
    """Rates are medians over `repetitions`, which are there one by one, too."""
    work, plan, bandwidths, speed = (
        result.workload,
        result.expected.plan,
        result.expected.bandwidths,
        result.expected.speed,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "model": loaded.name,
        "dtype": loaded.dtype,
        "device": str(loaded.device),
        "kernel": chosen(formats_of(loaded.dtype).experts, loaded.device.type),
        "threads": machine.compute_threads(loaded.opened.options.threads),
        "policy": loaded.opened.options.policy,
        "seed": work.seed,
        "context": plan.memory.context,
        "prompt_tokens": work.prompt_tokens,
        "max_tokens": work.max_tokens,
        "repeat": work.repeat,
        "load_s": result.load_s,
        "prefill_tokens_per_s": result.prefill,
        "decode_tokens_per_s": result.decode,
        "parallel": work.parallel,
        "parallel_tokens_per_s": median(result.parallel) if result.parallel else None,
        "hit_rate": result.hit_rate,
        "bytes_read": result.bytes_read,
        "disk_bytes_per_token": result.disk_bytes_per_token,
        "disk_bytes_per_s": result.disk_rate,
        "read_bytes_per_token": read_bytes_per_token(loaded.opened.spec, loaded.dtype),
        "ram_bytes_per_s": result.ram_rate,
        "ram_share": None if result.ram_rate is None else result.ram_rate / bandwidths.ram,
        "peak_rss_bytes": result.peak_rss,
        "planned_bytes": planned_bytes(plan),
        "forecast": {
            "decode_tokens_per_s": _limits(result.decode_band),
            "prefill_tokens_per_s": _limits(result.prefill_band),
            "first_token_s": _limits((speed.first_token_low_s, speed.first_token_high_s)),
            "evidence": speed.evidence,
            "ram_bandwidth_bytes_per_s": bandwidths.ram,
            "ram_sample_bytes": result.expected.sample,
            "disk_bandwidth_bytes_per_s": bandwidths.disk if plan.disk.experts else None,
            "device_bandwidth_bytes_per_s": bandwidths.device if plan.device.dense else None,
            "link_bandwidth_bytes_per_s": bandwidths.link if plan.device.dense else None,
        },
        "other_programs_share": result.others,
        "within_forecast": result.within_forecast,
        "repetitions": [
            {
                "prefill_tokens_per_s": each.prefill_rate,
                "decode_tokens_per_s": each.decode_rate,
                "bytes_read": each.prefill.bytes_read + each.decode.bytes_read,
            }
            for each in result.repetitions
        ],
    }


def _limits(band: tuple[float, float]) -> dict[str, float]:
    return {"low": band[0], "high": band[1]}

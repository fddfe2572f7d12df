"""The report of a trace as the `routing` object of `inspect --routing --json`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from moecli.routing.balance import OVERFLOW_FACTORS, Balance
from moecli.routing.repetition import Repetition
from moecli.routing.replay import Replay, Verdict
from moecli.routing.report import LayerReport, RoutingReport

_OVERALL = (
    "entropy", "max_violation", "cv2", "gini", "repeat_top1", "repeat_any", "mean_overlap", "gate_entropy",
    "auxiliary_loss", "z_loss",
)  # fmt: skip


def document(
    analysed: RoutingReport, bytes_per_slot: int | None = None, with_coactivation: bool = False
) -> dict[str, Any]:
    """The `routing` object of `inspect --routing --json`. `bytes_per_slot`: one expert in each layer."""
    layers = [_layer_document(layer, analysed.domains) for layer in analysed.layers]
    result: dict[str, Any] = {
        "tokens": analysed.tokens,
        "prompt_tokens": analysed.prompt_tokens,
        "generated_tokens": analysed.generated_tokens,
        "prompts": analysed.prompts,
        "domains": dict(zip(analysed.domains, analysed.domain_tokens, strict=True)),
        "few_tokens": analysed.few_tokens,
        "layers": layers,
        "overall": _overall(layers),
    }
    if analysed.layers[0].domain_distance is not None:
        result["domain_distance"] = _distance_document(analysed)
    if with_coactivation:
        result["coactivation"] = [
            {"layer": layer.layer, "shares": np.round(layer.coactivation.shares, 4).tolist()}
            for layer in analysed.layers
        ]
    if analysed.replay is not None and analysed.verdict is not None:
        result["cache"] = _cache_document(analysed.replay, analysed.verdict, bytes_per_slot)
    finite: dict[str, Any] = _finite(result)
    return finite


def _layer_document(layer: LayerReport, domains: tuple[str, ...]) -> dict[str, Any]:
    repeated, expected = layer.repetition, layer.repetition_baseline
    pairs, words = layer.coactivation, layer.vocabulary
    return {
        "layer": layer.layer,
        "experts": layer.experts,
        "active": layer.active,
        "counts": layer.counts,
        **_balance_document(layer.balance),
        **_repetition_document(repeated),
        "baseline": {
            **_balance_document(layer.noise.mean),
            **_repetition_document(expected.uniform),
            "repeat_top1_by_load": expected.top1_by_load,
            "overflow": _by_factor(layer.noise.overflow),
            "auxiliary_loss": layer.active,
            "coactivation": pairs.baseline,
        },
        "limit": {  # what 1 in 20 uniform routers exceeds (entropy: falls below)
            **_balance_document(layer.noise.limit),
            **_repetition_document(expected.limit),
            "coactivation": pairs.limit,
        },
        "dead_chance": layer.dead_chance,
        "overflow": _by_factor(layer.overflow),
        "gate_entropy": layer.gate_entropy,
        "auxiliary_loss": layer.auxiliary_loss,
        "z_loss": layer.z_loss,
        "counts_by_domain": dict(zip(domains, layer.by_domain, strict=True)),
        "closest_pairs": [asdict(pair) for pair in pairs.top],
        "vocabulary": {
            "ids": words.ids,
            "lift": words.lift,
            "shuffled_lift": words.shuffled_lift,
            "favourites": [[asdict(token) for token in tokens] for tokens in words.favourites],
        },
    }


def _balance_document(figures: Balance) -> dict[str, float]:
    """`dead` is a count: whole where it was counted, a mean where it was simulated."""
    numbers = asdict(figures)
    dead = numbers["dead"]
    return numbers | {"dead": int(dead) if float(dead).is_integer() else dead}


def _repetition_document(figures: Repetition) -> dict[str, float | None]:
    return {"repeat_top1": figures.top1, "repeat_any": figures.any, "mean_overlap": figures.overlap}


def _by_factor(shares: tuple[float, ...]) -> dict[str, float]:
    return {str(factor): share for factor, share in zip(OVERFLOW_FACTORS, shares, strict=True)}


def _overall(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the layers that have the figure; `dead` is the sum."""

    def means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
        known = {name: [row[name] for row in rows if row.get(name) is not None] for name in _OVERALL}
        return {name: float(np.mean(values)) if values else None for name, values in known.items()}

    baselines = [layer["baseline"] for layer in layers]
    return {
        **means(layers),
        "dead": sum(layer["dead"] for layer in layers),
        "baseline": {**means(baselines), "dead": sum(baseline["dead"] for baseline in baselines)},
    }


def _distance_document(analysed: RoutingReport) -> dict[str, Any]:
    distances = [layer.domain_distance for layer in analysed.layers if layer.domain_distance is not None]
    return {
        "unit": "bit",
        "domains": analysed.domains,
        "matrix": np.mean([distance.matrix for distance in distances], 0).tolist(),
        "noise": np.mean([distance.noise for distance in distances], 0).tolist(),
        "limit": np.mean([distance.limit for distance in distances], 0).tolist(),
        "layers": [
            {
                "layer": layer.layer,
                "mean": distance.mean,
                "noise": distance.noise_mean,
                "beyond_noise": distance.beyond_noise,
            }
            for layer, distance in zip(analysed.layers, distances, strict=True)
        ],
    }


def _cache_document(result: Replay, judged: Verdict, bytes_per_slot: int | None) -> dict[str, Any]:
    def in_bytes(slots: int) -> int | None:
        return None if bytes_per_slot is None else slots * bytes_per_slot

    return {
        "slots": result.slots,
        "budget_bytes": None if bytes_per_slot is None else [slots * bytes_per_slot for slots in result.slots],
        **{curve.policy: curve.hit_rates for curve in result.curves},
        "chance": [slots / result.experts for slots in result.slots],
        "replayed": {
            "layers": result.layers,
            "tokens": result.tokens,
            "sampled": result.sampled,
            "generated_only": result.generated_only,
        },
        "verdict": {
            **asdict(judged),
            "gain": judged.gain,
            "budget_bytes": in_bytes(judged.slots),
            "recommended_budget_bytes": in_bytes(judged.recommended_slots),
        },
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: None instead. Tuples become lists."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

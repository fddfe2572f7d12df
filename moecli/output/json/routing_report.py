"""A routing report as plain data: the figures of each layer beside a uniform router's, domains, pairs, cache."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from moecli.routing.balance import OVERFLOW_FACTORS
from moecli.routing.domains import Domains
from moecli.routing.permutation import Chance
from moecli.routing.replay import Replay, Verdict
from moecli.routing.report import Figures, LayerReport, RoutingReport
from moecli.routing.temporal_locality import TemporalLocality

_OVERALL = (
    "entropy", "max_violation", "cv2", "gini", "repeat_top1", "repeat_any", "mean_overlap", "gate_entropy",
    "auxiliary_loss", "z_loss", "foreseen",
)  # fmt: skip


def document(
    analysed: RoutingReport, bytes_per_slot: int | None = None, with_coactivation: bool = False
) -> dict[str, Any]:
    """`bytes_per_slot`: one expert in each layer. `with_coactivation` adds the shares of all pairs, [E, E] a layer."""
    result: dict[str, Any] = {
        "tokens": analysed.tokens,
        "prompt_tokens": analysed.prompt_tokens,
        "generated_tokens": analysed.generated_tokens,
        "prompts": analysed.prompts,
        "domains": dict(zip(analysed.domains, analysed.domain_tokens, strict=True)),
        "few_tokens": analysed.few_tokens,
        "layers": [_layer(layer, analysed.domains) for layer in analysed.layers],
        "overall": {**_overall(analysed.overall), "baseline": _overall(analysed.overall_uniform)},
    }
    if (distances := analysed.domain_distances) is not None:
        result["domain_distance"] = _domain_distance(analysed, distances)
    if with_coactivation:
        result["coactivation"] = [
            {"layer": layer.layer, "shares": np.round(layer.coactivation.shares, 4).tolist()}
            for layer in analysed.layers
        ]
    if analysed.replay is not None and analysed.verdict is not None:
        result["cache"] = _cache(analysed.replay, analysed.verdict, bytes_per_slot)
    finite: dict[str, Any] = _finite(result)
    return finite


def _layer(layer: LayerReport, domains: tuple[str, ...]) -> dict[str, Any]:
    repeated, expected = layer.locality, layer.locality_baseline
    pairs, words = layer.coactivation, layer.vocabulary
    return {
        "layer": layer.layer,
        "experts": layer.experts,
        "active": layer.active,
        "counts": layer.counts,
        **asdict(layer.balance),
        **_locality(repeated),
        "baseline": {
            **asdict(layer.noise.mean),
            **_locality(expected.uniform),
            "repeat_top1_by_load": expected.top1_by_load,
            "overflow": _by_factor(layer.noise.overflow),
            "auxiliary_loss": layer.active,
            "foreseen": layer.active / layer.experts,
            "coactivation": pairs.baseline,
        },
        "limit": {  # what 1 in 20 uniform routers exceeds (entropy: falls below)
            **asdict(layer.noise.limit),
            **_locality(expected.limit),
            "coactivation": pairs.limit,
        },
        "chance": {  # deals of the same prompts; what has too few prompts for a verdict is missing
            name: asdict(found) for name, found in layer.chances.items()
        },
        "dead_chance": layer.dead_chance,
        "overflow": _by_factor(layer.overflow),
        "gate_entropy": layer.gate_entropy,
        "auxiliary_loss": layer.auxiliary_loss,
        "z_loss": layer.z_loss,
        "foreseen": layer.foreseen,
        "counts_by_domain": dict(zip(domains, layer.by_domain, strict=True)),
        "closest_pairs": [asdict(pair) for pair in pairs.top],
        "vocabulary": {
            "ids": words.ids,
            "lift": words.lift,
            "shuffled_lift": words.shuffled_lift,
            "favourites": [[asdict(token) for token in tokens] for tokens in words.favourites],
        },
    }


def _locality(figures: TemporalLocality) -> dict[str, float | None]:
    return {"repeat_top1": figures.top1, "repeat_any": figures.any, "mean_overlap": figures.overlap}


def _by_factor(shares: tuple[float, ...]) -> dict[str, float]:
    return {str(factor): share for factor, share in zip(OVERFLOW_FACTORS, shares, strict=True)}


def _overall(figures: Figures) -> dict[str, float | None]:
    return {**{name: getattr(figures, name) for name in _OVERALL}, "dead": figures.dead}


def _domain_distance(analysed: RoutingReport, found: Domains) -> dict[str, Any]:
    return {
        "figure": "Jensen-Shannon divergence",
        "unit": "bit",
        "unit_of_chance": "prompt",
        "domains": analysed.domains,
        "prompts": found.prompts,
        "smallest_p_value": found.smallest_p,
        "verdict": found.tested,
        "matrix": found.matrix.tolist(),
        "noise": found.noise.tolist(),
        "limit": found.limit.tolist(),
        "p_values": found.p_values.tolist(),
        "beyond_chance": found.beyond.tolist(),
        "layers": [
            {"layer": layer.layer, "mean": distance.mean, **beside_chance(distance.chance)}
            for layer, distance in zip(analysed.layers, found.layers, strict=True)
        ],
    }


def beside_chance(chance: Chance | None) -> dict[str, Any]:
    """Null where there are too few prompts."""
    if chance is None:
        return {"noise": None, "limit": None, "p_value": None, "beyond_noise": None}
    return {
        "noise": chance.mean,
        "limit": chance.limit,
        "p_value": chance.p_value,
        "beyond_noise": chance.beyond,
    }


def _cache(result: Replay, judged: Verdict, bytes_per_slot: int | None) -> dict[str, Any]:
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

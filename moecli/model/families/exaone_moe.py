"""K-EXAONE: DeepSeek-V3 routing, windows that rotate and full layers without positions (ExaoneMoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    GROUPED_QUERY,
    MLP,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
    names,
)
from moecli.model.families._parts import biased_sigmoid, check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import NO_ROPE, FeedForward, Layer, Mixture, ModelSpec, QkNorm

_SLIDING, _FULL = _KINDS = ("sliding_attention", "full_attention")
# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {"scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "exaone_moe", neutral=_NEUTRAL)
    c.ignore("first_last_k_dense_replace")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 2048)
    count, window = layer_count(c, 32), c.count("sliding_window", 4096)
    sliding = grouped_query(c, hidden_size, context, heads=32, kv_heads=32, qk_norm=QkNorm.HEAD, window=window)
    attentions = {_SLIDING: sliding, _FULL: replace(sliding, rope=NO_ROPE, window=None)}
    activation, width = c.activation("hidden_act", "silu"), c.count("moe_intermediate_size", 1024)
    shared = c.count("num_shared_experts", 1)
    mixture = Mixture(
        biased_sigmoid(c, experts=64, top_k=8, scaling=2.5, experts_key="num_experts"),
        FeedForward(width, activation),
        FeedForward(shared * width, activation),
    )
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 16384), activation)
    kinds, sparse = _kinds(c, count), _sparse(c, count)
    return make_spec(
        c, [Layer(attentions[kind], mixture if sparse[i] else dense) for i, kind in enumerate(kinds)],
        hidden_size=hidden_size, context=context, vocab=102_400, eps=1e-5,
        extra_layers=c.optional_count("num_nextn_predict_layers", 0, least=0) or 0,
    )  # fmt: skip


def _kinds(c: ConfigReader, count: int) -> list[str]:
    """By name; without names every so many layers are full ones. A pattern of letters says the same beside names."""
    pattern = c.raw("sliding_window_pattern", 4)
    if isinstance(pattern, str):
        kinds = c.choices("layer_types", count, _KINDS)
        said = [{"L": _SLIDING, "G": _FULL}.get(letter) for letter in pattern] or [None]
        if any(said[i % len(said)] != kind for i, kind in enumerate(kinds[:-1])):  # the last is full, whatever it says
            raise c.fail("sliding_window_pattern", "contradicts layer_types")
        return kinds
    every = c.count("sliding_window_pattern", 4)
    return c.choices("layer_types", count, _KINDS, [_KINDS[(i + 1) % every == 0] for i in range(count)])


def _sparse(c: ConfigReader, count: int) -> list[bool]:
    """Which layers are mixtures, by whichever key says so."""
    first = c.count("first_k_dense_replace", 1, least=0)
    flags = c.choices("is_moe_layer", count, (False, True), [i >= first for i in range(count)])
    kinds = c.choices("mlp_layer_types", count, ("dense", "sparse"), ["sparse" if each else "dense" for each in flags])
    return [kind == "sparse" for kind in kinds]


_LAYER = "model.layers.{layer}."
_DENSE = BODY | GROUPED_QUERY | MLP | SHARED_EXPERTS
_PREDICTION = r"mtp\..+"  # of several tokens
_PUBLISHED = names(_LAYER + "mlp.", "", router_bias="e_score_correction_bias")
FAMILY = Family(
    architectures=("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
    model_types=("exaone_moe",),
    read=read,
    layouts=(
        *(
            replace(layout, ignored=(*layout.ignored, _PREDICTION))
            for layout in (both_layouts(_DENSE | _PUBLISHED)[0], both_layouts(_DENSE | CORRECTION_BIAS)[1])
        ),
        *gguf_layouts(),
    ),
)

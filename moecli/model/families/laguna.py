"""Laguna: heads behind a softplus, more of them in windows than in full layers (LagunaForCausalLM)."""

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
from moecli.model.families._parts import check_router, layer_count, make_spec
from moecli.model.families._rope import RopeDefaults, read_ropes
from moecli.model.spec import FeedForward, Gate, GroupedQuery, Layer, Mixture, ModelSpec, QkNorm, Router, Scoring

_FULL, _SLIDING = _KINDS = ("full_attention", "sliding_attention")
# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {
    "norm_topk_prob": (True, None),
    "moe_router_use_sigmoid": (True, None),
    "moe_router_score_func": ("sigmoid", None),
    "moe_apply_router_weight_on_input": (False, None),
}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "laguna", neutral=_NEUTRAL)
    c.ignore("mlp_only_layers", "decoder_sparse_step")  # mlp_layer_types says it
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 131_072)
    count = layer_count(c, 40)
    kinds = c.choices("layer_types", count, _KINDS, [_FULL] * count)
    attentions = _attentions(c, context, count)
    activation = c.activation("hidden_act", "silu")
    softcap = c.number("moe_router_logit_softcapping", 0.0, positive=False)
    router = Router(
        c.count("num_experts", 256), c.count("num_experts_per_tok", 8), Scoring.SIGMOID, norm_power=1.0,
        scaling=c.number("moe_routed_scaling_factor", 1.0), correction_bias=True,
        softcap=softcap if softcap > 0 else None,
    )  # fmt: skip
    mixture = Mixture(
        router,
        FeedForward(c.count("moe_intermediate_size", 512), activation),
        FeedForward(c.count("shared_expert_intermediate_size", 512), activation),
    )
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 8192), activation)
    mlps = c.choices("mlp_layer_types", count, ("dense", "sparse"), ["dense"] + ["sparse"] * (count - 1))
    layers = [Layer(attentions[i][kinds[i]], mixture if mlps[i] == "sparse" else dense) for i in range(count)]
    return make_spec(c, layers, hidden_size=hidden_size, context=context, vocab=100_352)


def _attentions(c: ConfigReader, context: int, count: int) -> list[dict[str, GroupedQuery]]:
    """What each layer would have, by kind: only the number of heads is each one's own."""
    usual, kv_heads = c.count("num_attention_heads", 48), c.count("num_key_value_heads", 8)
    head_dim, bias = c.count("head_dim", 128), c.flag("attention_bias", False)
    ropes = read_ropes(
        c, context, {_FULL: RopeDefaults(head_dim, 500_000.0, 0.5), _SLIDING: RopeDefaults(head_dim, 10_000.0, 1.0)}
    )
    c.expect("gating", True, "per-head", "per-element")
    by_head = c.raw("gating", True) != "per-element"
    full = GroupedQuery(
        usual, kv_heads, head_dim, ropes[_FULL], head_dim**-0.5, qkv_bias=bias, output_bias=bias,
        qk_norm=QkNorm.HEAD, gate=Gate.SOFTPLUS,
    )  # fmt: skip
    sliding = replace(full, rope=ropes[_SLIDING], window=c.count("sliding_window", 512))
    usual_of, key = {_FULL: full, _SLIDING: sliding}, "num_attention_heads_per_layer"
    numbers = c.raw(key, None) or [usual] * count
    if not isinstance(numbers, list) or len(numbers) != count:
        raise c.fail(key, f"must be a list with one entry for each of {count} layers")
    found = []
    for heads in numbers:
        if type(heads) is not int or not 0 < heads <= 2**31 or heads % kv_heads:
            raise c.fail(key, f"must hold multiples of the {kv_heads} key/value heads")
        width = heads if by_head else heads * head_dim
        found.append({kind: replace(each, heads=heads, gate_width=width) for kind, each in usual_of.items()})
    return found


_LAYER = "model.layers.{layer}."
_DENSE = BODY | GROUPED_QUERY | MLP | names(_LAYER, attn_gate="self_attn.g_proj")
_PUBLISHED = names(_LAYER + "mlp.shared_expert.", shared_gate_up="gate_proj up_proj", shared_down="down_proj") | names(
    _LAYER + "mlp.experts.", "", router_bias="e_score_correction_bias"
)
FAMILY = Family(
    architectures=("LagunaForCausalLM",),
    model_types=("laguna",),
    read=read,
    layouts=(
        both_layouts(_DENSE | _PUBLISHED)[0],
        both_layouts(_DENSE | SHARED_EXPERTS | CORRECTION_BIAS)[1],
        *gguf_layouts(),
    ),
)

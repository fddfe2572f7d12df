"""MiMo-V2-Flash: five short windows with sinks to one full layer, values narrower than keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, CORRECTION_BIAS, GROUPED_QUERY, MLP, Family, both_layouts, names
from moecli.model.families._parts import biased_sigmoid, check_router, layer_count, make_spec
from moecli.model.families._rope import RopeDefaults, read_ropes
from moecli.model.spec import FeedForward, GroupedQuery, Layer, Mixture, ModelSpec

_FULL, _SLIDING = _KINDS = ("full_attention", "sliding_attention")
# Other implementations read them; transformers' is written for these values.
_NEUTRAL = {"scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None), "rope_scaling": (None,)}


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "mimo_v2_flash", neutral=_NEUTRAL)
    c.alias("n_routed_experts", "num_local_experts")
    c.alias("rms_norm_eps", "layernorm_epsilon")
    c.ignore("attention_chunk_size", "hybrid_block_size")  # mirrors
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 131_072)
    attentions = _attentions(c, context)
    activation = c.activation("hidden_act", "silu")
    router = biased_sigmoid(c, experts=256, top_k=8)
    mixture = Mixture(router, FeedForward(c.count("moe_intermediate_size", 2048), activation))
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 16384), activation)
    count = layer_count(c, 48)
    sliding = [index > 0 and (index + 1) % 6 > 0 for index in range(count)]
    kinds = _choices(c, count, ("layer_types", "hybrid_layer_pattern"), _KINDS, sliding)
    sparse = [index > 0 for index in range(count)]
    mlps = _choices(c, count, ("mlp_layer_types", "moe_layer_freq"), ("dense", "sparse"), sparse)
    layers = [
        Layer(attentions[kind], mixture if mlp == "sparse" else dense) for kind, mlp in zip(kinds, mlps, strict=True)
    ]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=152_576, eps=1e-5,
        extra_layers=c.optional_count("num_nextn_predict_layers", 0, least=0) or 0,
    )  # fmt: skip


def _choices(
    c: ConfigReader, count: int, keys: tuple[str, str], kinds: tuple[str, str], usual: list[bool]
) -> list[str]:
    """By name, or by 0 and 1 as the published file has it."""
    numbers = c.choices(keys[1], count, (0, 1), list(map(int, usual)))
    return c.choices(keys[0], count, kinds, [kinds[each] for each in numbers])


def _attentions(c: ConfigReader, context: int) -> dict[str, GroupedQuery]:
    """Windows have twice the key/value heads, and sinks."""
    heads, kv_heads = c.count("num_attention_heads", 64), c.count("num_key_value_heads", 4)
    head_dim, share = c.count("head_dim", 192), c.optional_number("partial_rotary_factor", 0.334) or 0.334
    wide = c.count("swa_head_dim", head_dim)
    ropes = read_ropes(
        c, context,
        {
            _FULL: RopeDefaults(head_dim, c.number("rope_theta", 5e6), share),
            _SLIDING: RopeDefaults(wide, c.number("swa_rope_theta", 10_000.0), share),
        },
    )  # fmt: skip
    full = GroupedQuery(
        heads, kv_heads, head_dim, ropes[_FULL], head_dim**-0.5, qkv_bias=c.flag("attention_bias", False),
        value_dim=c.count("v_head_dim", 128), value_scale=c.optional_number("attention_value_scale", 0.707) or 1.0,
        sinks=c.flag("add_full_attention_sink_bias", False),
    )  # fmt: skip
    window, before = c.count("sliding_window", 129), c.optional_count("sliding_window_size")
    sliding = replace(
        full,
        heads=c.count("swa_num_attention_heads", heads),
        kv_heads=c.count("swa_num_key_value_heads", 2 * kv_heads),
        head_dim=wide,
        value_dim=c.count("swa_v_head_dim", full.value_dim),
        rope=ropes[_SLIDING],
        scale=wide**-0.5,
        window=window if before is None else before + 1,  # the token itself is not among them
        sinks=c.flag("add_swa_attention_sink_bias", True),
    )
    for each in (full, sliding):
        if each.heads % each.kv_heads:
            raise c.fail("num_key_value_heads", f"makes {each.kv_heads} for the {each.heads} heads of one kind")
    return {_FULL: full, _SLIDING: sliding}


_LAYER = "model.layers.{layer}.self_attn."
_PREDICTION = r"model\.mtp\..+"  # of several tokens
FAMILY = Family(
    architectures=("MiMoV2FlashForCausalLM",),
    model_types=("mimo_v2_flash",),
    read=read,
    layouts=tuple(
        replace(
            layout, dense={**layout.dense, **names(_LAYER, "", sinks=sinks)}, ignored=(*layout.ignored, _PREDICTION)
        )
        for layout, sinks in zip(
            both_layouts(BODY | GROUPED_QUERY | MLP | CORRECTION_BIAS), ("attention_sink_bias", "sinks"), strict=True
        )
    ),
)

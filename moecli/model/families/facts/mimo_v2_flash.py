"""MiMo-V2-Flash: five short windows with sinks to one full layer, values narrower than keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import FeedForward, Layer, Mixture, ModelSpec
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "mimo_v2_flash")
    c.expect("scoring_func", "sigmoid")
    c.expect("topk_method", "noaux_tc")
    c.expect("n_shared_experts", None, 0)
    c.expect("attention_bias", False)
    c.ignore("sliding_window_size", "attention_chunk_size", "hybrid_block_size")  # mirrors
    c.ignore("attention_value_scale")  # one factor on all values
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 262_144)
    full = grouped_query(c, hidden_size, context, heads=64, kv_heads=4, head_dim=192, theta=5e6, rotary=0.334)
    full = replace(full, value_dim=c.count("v_head_dim", 128), sinks=c.flag("add_full_attention_sink_bias", False))
    window = replace(
        full,
        heads=c.count("swa_num_attention_heads", full.heads),
        kv_heads=c.count("swa_num_key_value_heads", 8),
        head_dim=c.count("swa_head_dim", full.head_dim),
        value_dim=c.count("swa_v_head_dim", 128),
        rope=replace(full.rope, theta=c.number("swa_rope_theta", 10_000.0)),
        window=c.count("sliding_window", 128),
        sinks=c.flag("add_swa_attention_sink_bias", True),
    )
    activation = c.activation("hidden_act", "silu")
    router = biased_sigmoid(c, experts=256, top_k=8)
    mixture = Mixture(router, FeedForward(c.count("moe_intermediate_size", 2048), activation))
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 16384), activation)
    count = layer_count(c, 48)
    slides, sparse = c.choices("hybrid_layer_pattern", count, (0, 1)), c.choices("moe_layer_freq", count, (0, 1))
    layers = [Layer(window if slides[i] else full, mixture if sparse[i] else dense) for i in range(count)]
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=152_576, eps=1e-5, eps_key="layernorm_epsilon",
        extra_layers=c.count("num_nextn_predict_layers", 0, least=0),
        unsupported=(Unsupported.ATTENTION_SINKS, Unsupported.NARROW_VALUES),
    )  # fmt: skip


FAMILY = Family(architectures=("MiMoV2FlashForCausalLM",), model_types=("mimo_v2_flash",), read=read)

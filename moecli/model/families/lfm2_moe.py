"""LFM2-MoE: short convolutions with attention between them, sigmoid router, dense first layers (Lfm2MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family, both_layouts, gguf_layouts, names
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.families._recurrent import short_convolution
from moecli.model.spec import NO_ATTENTION, Activation, FeedForward, Layer, Mixture, ModelSpec, QkNorm, Router, Scoring

_KINDS = ("conv", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "lfm2_moe")
    c.alias("tie_word_embeddings", "tie_embedding")
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 128_000)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, theta=1_000_000.0, qk_norm=QkNorm.HEAD
    )  # fmt: skip
    router = Router(
        c.count("num_experts", 32),
        c.count("num_experts_per_tok", 4),
        Scoring.SIGMOID,
        norm_power=1.0 if c.flag("norm_topk_prob", True) else None,
        norm_epsilon=1e-6,
        scaling=c.number("routed_scaling_factor", 1.0),
        correction_bias=c.flag("use_expert_bias", True),
    )
    mixture = Mixture(router, FeedForward(c.count("moe_intermediate_size", 1792), Activation.SILU))
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", 7168), Activation.SILU)
    count, first = layer_count(c, 32), c.count("num_dense_layers", 2, least=0)
    convolution = short_convolution(hidden_size, c.count("conv_L_cache", 3, least=2), c.flag("conv_bias", False))

    def layer(index: int, kind: str) -> Layer:
        ffn = dense if index < first else mixture
        return Layer(attention, ffn) if kind == "full_attention" else Layer(NO_ATTENTION, ffn, convolution)

    kinds = c.choices("layer_types", count, _KINDS)
    return make_spec(
        c, [layer(index, kind) for index, kind in enumerate(kinds)], hidden_size=hidden_size, context=context,
        vocab=65536, eps=1e-5, eps_key="norm_eps", tied=True,
    )  # fmt: skip


_LAYER = "model.layers.{layer}."
_NAMES = (
    names("model.", embedding="embed_tokens", final_norm="embedding_norm")
    | names(lm_head="lm_head")
    | names(_LAYER, attn_norm="operator_norm", ffn_norm="ffn_norm")
    | names(_LAYER + "self_attn.", qkv="q_proj k_proj v_proj", o="out_proj", q_norm="q_layernorm", k_norm="k_layernorm")
    | names(_LAYER + "conv.", mixer_in="in_proj", mixer_conv="conv", mixer_out="out_proj")
    | names(_LAYER + "conv.", ".bias", mixer_in_bias="in_proj", mixer_conv_bias="conv", mixer_out_bias="out_proj")
    | names(_LAYER + "feed_forward.", gate_up="w1 w3", down="w2", router="gate")
    | names(_LAYER + "feed_forward.", "", router_bias="expert_bias")
)
FAMILY = Family(
    architectures=("Lfm2MoeForCausalLM",),
    model_types=("lfm2_moe",),
    read=read,
    layouts=(
        *both_layouts(_NAMES, "feed_forward.experts", ("w1", "w3", "w2")),
        *gguf_layouts(
            "token_embd_norm", mixer_in="shortconv.in_proj", mixer_conv="shortconv.conv", mixer_out="shortconv.out_proj"
        ),
    ),
)

"""Grok-1: eight very large experts, two active; four norms a block, capped attention (xai-org/grok-1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BUFFERS,
    ExpertNames,
    Family,
    Layout,
    NamedSlice,
    gguf_layouts,
    names,
    per_expert,
)
from moecli.model.families._parts import grouped_query, make_spec, uniform_layers
from moecli.model.spec import FeedForward, Mixture, ModelSpec, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    """The ports of hpcai-tech, SGLang and keyfan. Constants without a key are those of the released JAX code."""
    c = ConfigReader(config, "grok-1")
    hidden_size, context = c.count("hidden_size"), c.count("max_position_embeddings")
    attention = grouped_query(
        c, hidden_size, context, heads=48, kv_heads=8,
        softcap=c.number("max_attn_value", 30.0),
        scale=c.number("attn_output_multiplier", 128**-0.5),  # already the usual 1 / sqrt(head_dim)
    )  # fmt: skip
    c.alias("num_experts", "num_local_experts")
    router = Router(c.count("num_experts", 8), c.count("num_experts_per_tok", 2))
    expert = FeedForward(c.count("intermediate_size"), c.activation("hidden_act", "gelu_pytorch_tanh"))
    return make_spec(
        c, uniform_layers(c, attention, Mixture(router, expert), default=64),
        hidden_size=hidden_size, context=context, eps=1e-5, tied=True, branch_norms=True,
        embedding_multiplier=c.number("embedding_multiplier_scale", 78.38367176906169),
        logit_multiplier=c.number("output_multiplier_scale", 0.5773502691896257),
    )  # fmt: skip


_LAYER = "model.layers.{layer}."
_NORMS = {
    "attn_norm": "pre_attn_norm",
    "post_attn_norm": "post_attn_norm",
    "ffn_norm": "pre_moe_norm",
    "post_ffn_norm": "post_moe_norm",
}
_TABLES = names("model.", embedding="embed_tokens") | names(lm_head="lm_head")
_BLOCK, _LEAF = "transformer.decoder_layer.{layer}.", "transformer/decoder_layer_{layer}/"
_TREE_NORMS = {
    "attn_norm": "rms_norm",
    "post_attn_norm": "rms_norm_1",
    "ffn_norm": "rms_norm_2",
    "post_ffn_norm": "rms_norm_3",
}


def _hpcai(norm: str) -> Layout:
    return Layout(
        _TABLES
        | names("model.", norm, final_norm="norm")
        | names(_LAYER, norm, **_NORMS)
        | names(_LAYER, qkv="attn.q_proj attn.k_proj attn.v_proj", o="attn.o_proj", router="moe_block.gate"),
        per_expert("moe_block.experts", "linear", "linear_v", "linear_1"),
        BUFFERS,
    )


def _keyfan(norm: str) -> Layout:
    """Also v2ray's."""
    return Layout(
        names("transformer.", embedding="in_out_embed")
        | names(lm_head="lm_head")
        | names("transformer.", norm, final_norm="rms_norm")
        | names(_BLOCK, norm, **_TREE_NORMS)
        | names(_BLOCK + "multi_head_attention.", qkv="query key value", o="linear")
        | names(_BLOCK, router="router"),
        ExpertNames(*(NamedSlice(f"{_BLOCK}moe.{{expert}}.{name}.weight") for name in _MOE)),
        BUFFERS,
    )


_MOE = ("linear", "linear_v", "linear_1")
_RELEASE = Layout(
    names("language_model/", "", embedding="in_out_embed/embeddings", final_norm="rms_norm/scale")
    | names(_LEAF, "/scale", **_TREE_NORMS)
    | names(_LEAF + "multi_head_attention/", "/w", qkv="query key value", o="linear")
    | names(_LEAF, "/w", router="router"),
    ExpertNames(*(NamedSlice(f"{_LEAF}moe/{name}/w", stacked=True, transposed=True) for name in _MOE)),
)
_SGLANG = Layout(
    _TABLES
    | names("model.", final_norm="norm")
    | names(_LAYER, **_NORMS)
    | names(_LAYER + "self_attn.", qkv="q_proj k_proj v_proj", o="o_proj")
    | names(_LAYER, router="block_sparse_moe.gate"),
    per_expert("block_sparse_moe.experts", "w1", "w3", "w2"),
    BUFFERS,
)
FAMILY = Family(
    architectures=("Grok1ModelForCausalLM", "GrokForCausalLM"),
    model_types=("grok-1", "grok"),
    read=read,
    layouts=(
        _hpcai(".scale"),
        _hpcai(".weight"),
        _SGLANG,
        _keyfan(".weight"),
        _keyfan(".scale"),
        _RELEASE,
        *gguf_layouts(post_attn_norm="attn_output_norm", post_ffn_norm="layer_output_norm"),
    ),
    signature="embedding_multiplier_scale",
)

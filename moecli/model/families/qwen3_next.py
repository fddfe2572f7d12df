"""Qwen3-Next: gated delta nets with gated attention in every fourth layer, 512 experts (Qwen3NextForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, MLP, Family, both_layouts
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.families._recurrent import (
    GATED_QUERIES,
    delta_net_gates,
    delta_net_names,
    delta_net_turns,
    gated_delta_net,
    gguf_delta_net,
)
from moecli.model.families.qwen2_moe import SHARED_EXPERT
from moecli.model.spec import NO_ATTENTION, FeedForward, Layer, Mixture, ModelSpec, NormKind, QkNorm, Router

_KINDS = ("linear_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "qwen3_next")
    return hybrid(c, layers=48, experts=512, top_k=10, dense_width=5632, vocab=151_936)


def hybrid(c: ConfigReader, *, layers: int, experts: int, top_k: int, dense_width: int, vocab: int) -> ModelSpec:
    """Qwen's hybrid; the numbers are the family's defaults."""
    hidden_size, context = c.count("hidden_size", 2048), c.count("max_position_embeddings", 32768)
    c.expect("attention_bias", False)  # its queries' would be the gate's too
    c.expect("attn_output_gate", True)
    attention = grouped_query(
        c, hidden_size, context, heads=16, kv_heads=2, head_dim=256, rotary=0.25, qk_norm=QkNorm.HEAD
    )
    attention = replace(attention, gate_width=attention.query_width)
    c.ignore("mamba_ssm_dtype")
    activation = c.activation("hidden_act", "silu")
    mixture = Mixture(
        Router(
            c.count("num_experts", experts),
            c.count("num_experts_per_tok", top_k),
            norm_power=1.0 if c.flag("norm_topk_prob", True) else None,
        ),
        FeedForward(c.count("moe_intermediate_size", 512), activation),
        shared=FeedForward(c.count("shared_expert_intermediate_size", 512), activation),
        shared_gate=True,
    )
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size", dense_width), activation)
    count, every = layer_count(c, layers), c.count("full_attention_interval", 4)
    step, plain = c.count("decoder_sparse_step", 1), c.indices("mlp_only_layers", count)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[(i + 1) % every == 0] for i in range(count)])
    eps = c.number("rms_norm_eps", 1e-6)
    delta = gated_delta_net(c, hidden_size, eps)

    def layer(index: int) -> Layer:
        ffn = mixture if index not in plain and (index + 1) % step == 0 else dense
        return Layer(attention, ffn) if kinds[index] == "full_attention" else Layer(NO_ATTENTION, ffn, delta)

    return make_spec(
        c, [layer(index) for index in range(count)], hidden_size=hidden_size, context=context, vocab=vocab, eps=eps,
        norm=NormKind.ZERO_CENTRED,
    )  # fmt: skip


FURTHER_TOKENS = (r"mtp\..*",)  # what predicts more than the next one
NAMES = (
    BODY | GROUPED_QUERY | MLP | SHARED_EXPERT | {"attn_gate": ("model.layers.{layer}.self_attn.q_proj.weight",)}
)  # fmt: skip
FAMILY = Family(
    architectures=("Qwen3NextForCausalLM",),
    model_types=("qwen3_next",),
    read=read,
    layouts=(
        *both_layouts(
            NAMES | delta_net_names("in_proj_qkvz", "in_proj_ba"),
            ignored=(*BUFFERS, *FURTHER_TOKENS),
            interleaved=GATED_QUERIES | delta_net_turns(),
        ),
        *gguf_delta_net("ssm_ba", delta_net_gates("blk.{layer}.ssm_ba.weight")),
    ),
)

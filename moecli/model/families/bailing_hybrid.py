"""Ling 3: delta attention with decays that have a floor, gated latent attention at the end of each group of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    CORRECTION_BIAS,
    MLP,
    MULTI_HEAD_LATENT,
    SHARED_EXPERTS,
    Family,
    Layout,
    fused,
    names,
    per_expert,
)
from moecli.model.families._parts import biased_sigmoid, make_spec, multi_head_latent
from moecli.model.families._recurrent import kimi_delta
from moecli.model.families.deepseek_v2 import dense_then_sparse
from moecli.model.spec import NO_ATTENTION, Layer, ModelSpec

# transformers' names of what the published file calls otherwise
_RENAMED = {
    "max_position_embeddings": "model_max_length", "norm_topk_prob": "moe_renormalize", "n_group": "num_expert_group",
    "num_local_experts": "num_experts", "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts", "num_mtp_layers": "num_nextn_predict_layers",
}  # fmt: skip
_KINDS = ("linear_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "bailing_hybrid")
    for key, published in _RENAMED.items():
        c.alias(key, published)
    c.ignore("mtp_loss_scaling_factor")
    hidden_size, context = c.count("hidden_size", 2560), c.count("max_position_embeddings", 262_144)
    heads, eps = c.count("num_attention_heads", 32), c.number("rms_norm_eps", 1e-6)
    latent = multi_head_latent(c, context, heads=heads, query_rank=None, theta=6e6)
    router = biased_sigmoid(c, experts=512, top_k=8, scaling=2.5, experts_key="num_local_experts")
    router = replace(router, n_group=c.count("n_group", 8), topk_group=c.count("topk_group", 4))
    usual = dense_then_sparse(
        c, replace(latent, gate_width=heads), router, default_layers=42, default_dense=2, default_widths=(6144, 768, 1)
    )
    c.expect("hidden_act", "silu", "swish")  # of the convolutions, too
    delta = kimi_delta(
        hidden_size,
        heads=c.count("linear_num_heads", heads),
        dim=c.count("linear_head_dim", c.count("head_dim", 128)),  # transformers writes another under the second
        kernel=c.count("linear_conv_kernel_dim", c.count("short_conv_kernel_size", 4)),
        floor=c.number("kda_lower_bound", -5.0, positive=False) if c.flag("kda_safe_gate", True) else 0.0,
        eps=eps,
    )
    every, count = c.count("layer_group_size", 6), len(usual)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[(index + 1) % every == 0] for index in range(count)])

    def layer(index: int) -> Layer:
        full = kinds[index] == "full_attention"
        return usual[index] if full else replace(usual[index], attention=NO_ATTENTION, recurrent=delta)

    return make_spec(
        c, map(layer, range(count)), hidden_size=hidden_size, context=context, vocab=157_184,
        extra_layers=c.count("num_mtp_layers", 1, least=0),
    )  # fmt: skip


def _mixers(prefix: str, forget: str, conv: str, output: str) -> dict[str, tuple[str, ...]]:
    """Where both kinds of attention lie; each has an output and a gate of these names."""
    return (
        names(
            prefix, mixer_in=f"q_proj k_proj v_proj {forget}f_proj g_proj", mixer_gates="b_proj", mixer_conv=conv,
            mixer_norm="o_norm", mixer_out=output, o=output, attn_gate="g_proj", q="q_proj",
            kv_a="kv_a_proj_with_mqa", kv_a_norm="kv_a_layernorm", kv_b="kv_b_proj",
        )
        | names(prefix, "", mixer_step_bias=f"{forget}dt_bias", mixer_decay=f"{forget}A_log")
        | names(prefix, ".bias", kv_a_bias="kv_a_proj_with_mqa", o_bias=output)
    )  # fmt: skip


_LAYER = "model.layers.{layer}."
_SHARED = BODY | MULTI_HEAD_LATENT | MLP | SHARED_EXPERTS
FAMILY = Family(
    architectures=("BailingHybridForCausalLM",),
    model_types=("bailing_hybrid",),
    read=read,
    layouts=(
        Layout(
            _SHARED
            | names(embedding="model.word_embeddings")
            | names(_LAYER + "mlp.gate.", "", router_bias="expert_bias")
            | _mixers(_LAYER + "attention.", "", "q_conv1d k_conv1d v_conv1d", "dense"),
            per_expert("mlp.experts", "gate_proj", "up_proj", "down_proj"),
        ),
        Layout(
            _SHARED | CORRECTION_BIAS | _mixers(_LAYER + "self_attn.", "forget_gate.", "conv1d", "o_proj"),
            fused("mlp.experts"),
        ),
    ),
)

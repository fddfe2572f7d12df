"""Granite 4 hybrids: Mamba-2 with some attention, tiny experts beside a shared one (GraniteMoeHybridForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    BUFFERS,
    GROUPED_QUERY,
    ExpertNames,
    Family,
    Layout,
    NamedSlice,
    gguf_layouts,
    names,
)
from moecli.model.families._layout import fused as fused_experts
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.families._recurrent import NO_LIMIT, mamba2, mamba_names
from moecli.model.spec import (
    NO_ATTENTION,
    NO_ROPE,
    Activation,
    FeedForward,
    Layer,
    Mixture,
    ModelSpec,
    Recurrent,
    Router,
    Scoring,
)

_KINDS = {
    "mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention",
}  # fmt: skip


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "granitemoehybrid")
    c.alias("num_local_experts", "num_experts")
    c.alias("layer_types", "layers_block_type")
    c.expect("hidden_act", "silu")  # of the convolutions too
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 2048)
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=32, qkv_bias=bias, output_bias=bias, scale=c.number("attention_multiplier", 1.0)
    )
    c.expect("position_embedding_type", None, "nope", "rope")
    if c.raw("position_embedding_type", None) != "rope":
        attention = replace(attention, rope=NO_ROPE)
    shared = FeedForward(c.count("shared_intermediate_size", 1024), Activation.SILU)
    ffn: FeedForward | Mixture = shared
    expert, top_k = c.count("intermediate_size", 11008), c.count("num_experts_per_tok", 2, least=0)
    if experts := c.count("num_local_experts", 8, least=0):
        router = Router(experts, top_k, Scoring.SOFTMAX_OF_CHOSEN)
        ffn = Mixture(router, FeedForward(expert, Activation.SILU), shared)
        check_router(c, ffn)
    count = layer_count(c, 32)
    mixer, kinds = _mixer(c, hidden_size), c.choices("layer_types", count, list(_KINDS), ["mamba"] * count)
    layers = {"mamba": Layer(NO_ATTENTION, ffn, mixer), "attention": Layer(attention, ffn)}
    return make_spec(
        c, [layers[_KINDS[kind]] for kind in kinds],
        hidden_size=hidden_size, context=context, vocab=32000,
        embedding_multiplier=c.number("embedding_multiplier", 1.0),
        logit_multiplier=1 / c.number("logits_scaling", 1.0),
        residual_multiplier=c.number("residual_multiplier", 1.0),
    )  # fmt: skip


def _mixer(c: ConfigReader, hidden_size: int) -> Recurrent:
    c.ignore("mamba_chunk_size")  # how, not what
    c.expect("time_step_limit", *NO_LIMIT)
    heads, inner = c.count("mamba_n_heads", 128), c.count("mamba_expand", 2) * hidden_size
    head_dim = inner // heads if c.raw("mamba_d_head", "auto") == "auto" else c.count("mamba_d_head")
    if heads * head_dim != inner:
        raise c.fail("mamba_n_heads", f"is {heads}: as many heads of {head_dim} are not {inner} wide")
    groups = c.count("mamba_n_groups", 1)
    if heads % groups:
        raise c.fail("mamba_n_groups", f"is {groups}, which does not divide the {heads} heads")
    return mamba2(
        hidden_size,
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        state_dim=c.count("mamba_d_state", 256),
        kernel=c.count("mamba_d_conv", 4, least=2),
        conv_bias=c.flag("mamba_conv_bias", True),
        bias=c.flag("mamba_proj_bias", False),
        eps=c.number("rms_norm_eps", 1e-6),
    )


_LAYER = "model.layers.{layer}."
_BLOCK = _LAYER + "block_sparse_moe."
_NAMES = (
    BODY
    | GROUPED_QUERY
    | mamba_names(_LAYER + "mamba.")
    | names(_LAYER + "mamba.", "", mixer_step_bias="dt_bias")
    | names(_LAYER + "shared_mlp.", shared_gate_up="input_linear", shared_down="output_linear")
    | names(_LAYER + "shared_mlp.", gate_up="input_linear", down="output_linear")
)
FAMILY = Family(
    architectures=("GraniteMoeHybridForCausalLM",),
    model_types=("granitemoehybrid",),
    read=read,
    layouts=(
        Layout(
            _NAMES | names(_BLOCK, router="router.layer"),
            ExpertNames(
                NamedSlice(_BLOCK + "input_linear.weight", stacked=True, half=0),
                NamedSlice(_BLOCK + "input_linear.weight", stacked=True, half=1),
                NamedSlice(_BLOCK + "output_linear.weight", stacked=True),
            ),
            BUFFERS,
        ),
        Layout(_NAMES | names(_BLOCK, router="router"), fused_experts("block_sparse_moe.experts"), BUFFERS),
        *gguf_layouts(),
    ),
)

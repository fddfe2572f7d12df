"""Jamba: Mamba blocks with attention in every eighth, a mixture in every second (arXiv 2403.19887)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import (
    NO_ATTENTION,
    NO_ROPE,
    Extra,
    FeedForward,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    Recurrent,
    Router,
)
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "jamba")
    c.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep")  # how, not what
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 262_144)
    attention = grouped_query(c, hidden_size, context, heads=32, kv_heads=8, window=c.optional_count("sliding_window"))
    attention = replace(attention, rope=NO_ROPE)
    ffn = FeedForward(c.count("intermediate_size", 14336), c.activation("hidden_act", "silu"))
    mixture = Mixture(Router(c.count("num_experts", 16), c.count("num_experts_per_tok", 2)), ffn)
    check_router(c, mixture)
    every, first = c.count("attn_layer_period", 8), c.count("attn_layer_offset", 4, least=0)
    sparse_every, sparse_first = c.count("expert_layer_period", 2), c.count("expert_layer_offset", 1, least=0)
    mamba = _mamba(c, hidden_size)

    def layer(index: int) -> Layer:
        sparse = mixture.router.experts > 1 and (index - sparse_first) % sparse_every == 0
        half = mixture if sparse else ffn
        attends = (index - first) % every == 0
        return Layer(attention, half) if attends else Layer(NO_ATTENTION, half, mamba)

    return make_spec(
        c, [layer(index) for index in range(layer_count(c, 32))], hidden_size=hidden_size, context=context, vocab=65536,
        unsupported=(Unsupported.STATE_SPACE, Unsupported.NO_POSITIONS),
    )  # fmt: skip


def _mamba(c: ConfigReader, hidden_size: int) -> Recurrent:
    """Mamba-1, with norms on its step, input and output (arXiv 2312.00752)."""
    inner, state = c.count("mamba_expand", 2) * hidden_size, c.count("mamba_d_state", 16)
    kernel, rank = c.count("mamba_d_conv", 4), c.raw("mamba_dt_rank", "auto")
    rank = -(-hidden_size // 16) if rank == "auto" else c.count("mamba_dt_rank")
    conv_bias, bias = c.flag("mamba_conv_bias", True), c.flag("mamba_proj_bias", False)
    shapes: dict[str, tuple[int, ...]] = {
        "in": (2 * inner, hidden_size),
        "conv": (inner, kernel),
        "x": (rank + 2 * state, inner),
        "dt": (inner, rank),
        "dt_bias": (inner,),
        "a_log": (inner, state),
        "d": (inner,),
        "dt_norm": (rank,),
        "b_norm": (state,),
        "c_norm": (state,),
        "out": (hidden_size, inner),
    }
    if conv_bias:
        shapes["conv_bias"] = (inner,)
    if bias:
        shapes |= {"in_bias": (2 * inner,), "out_bias": (hidden_size,)}
    tensors = tuple(Extra(f"mamba_{role}", shape, Part.MIXER_OTHER) for role, shape in shapes.items())
    return Recurrent("mamba", tensors, state=inner * (state + kernel - 1))


FAMILY = Family(architectures=("JambaForCausalLM",), model_types=("jamba",), read=read)

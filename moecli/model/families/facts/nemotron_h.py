"""Nemotron 3 Nano: each block is one of Mamba-2, attention, or a mixture of two-matrix experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import biased_sigmoid, check_router, grouped_query, make_spec
from moecli.model.spec import (
    NO_ATTENTION,
    NO_FFN,
    NO_ROPE,
    Extra,
    FeedForward,
    Layer,
    Mixture,
    ModelSpec,
    Part,
    Recurrent,
)
from moecli.model.unsupported import Unsupported

_MAMBA, _ATTENTION, _MIXTURE, _DENSE = "M*E-"


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "nemotron_h")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 4096)
    c.expect("mlp_bias", False)
    c.expect("use_bias", False)
    c.expect("moe_latent_size", None)
    # Start values of training, how the state is stored and computed, and a rotation that no layer uses.
    c.ignore("time_step_floor", "time_step_max", "time_step_min", "time_step_limit", "rescale_prenorm_residual")
    c.ignore("mamba_ssm_cache_dtype", "chunk_size", "use_mamba_kernels", "num_logits_to_keep", "residual_in_fp32")
    c.ignore("rope_theta", "partial_rotary_factor", "norm_eps", "expand", "moe_shared_expert_overlap")
    bias = c.flag("attention_bias", False)
    attention = grouped_query(
        c, hidden_size, context, heads=32, kv_heads=8, head_dim=128, qkv_bias=bias, output_bias=bias,
        window=c.optional_count("sliding_window"),
    )  # fmt: skip
    activation = c.activation("mlp_hidden_act", "relu2")
    shared = FeedForward(c.count("moe_shared_expert_intermediate_size", 7688), activation, gated=False)
    mixture = Mixture(
        biased_sigmoid(c, experts=8, top_k=2),
        FeedForward(c.count("moe_intermediate_size", 7688), activation, gated=False),
        replace(shared, intermediate_size=shared.intermediate_size * c.count("n_shared_experts", 1)),
    )
    check_router(c, mixture)
    blocks = {
        _MAMBA: Layer(NO_ATTENTION, NO_FFN, _mamba2(c, hidden_size)),
        _ATTENTION: Layer(replace(attention, rope=NO_ROPE), NO_FFN),
        _MIXTURE: Layer(NO_ATTENTION, mixture),
        _DENSE: Layer(NO_ATTENTION, FeedForward(c.count("intermediate_size", 21504), activation, gated=False)),
    }
    pattern = c.text("hybrid_override_pattern")
    c.expect("num_hidden_layers", len(pattern))
    if wrong := set(pattern) - set(blocks):
        raise c.fail("hybrid_override_pattern", f"holds an unknown kind of block, '{min(wrong)}'")
    return make_spec(
        c, [blocks[kind] for kind in pattern],
        hidden_size=hidden_size, context=context, vocab=131_072, eps=1e-5, eps_key="layer_norm_epsilon",
        extra_layers=c.count("num_nextn_predict_layers", 0, least=0),
        unsupported=(Unsupported.STATE_SPACE, Unsupported.HALF_BLOCKS, Unsupported.UNGATED_EXPERTS),
    )  # fmt: skip


def _mamba2(c: ConfigReader, hidden_size: int) -> Recurrent:
    """Mamba-2 (arXiv 2405.21060): one decay per head, input and output maps shared within groups."""
    heads, head_dim = c.count("mamba_num_heads", 128), c.count("mamba_head_dim", 64)
    state, groups, kernel = c.count("ssm_state_size", 128), c.count("n_groups", 8), c.count("conv_kernel", 4)
    c.expect("mamba_hidden_act", "silu")
    c.expect("mamba_proj_bias", False)
    inner = heads * head_dim
    mixed = inner + 2 * groups * state
    shapes: dict[str, tuple[int, ...]] = {
        "in": (inner + mixed + heads, hidden_size),
        "conv": (mixed, kernel),
        "dt_bias": (heads,),
        "a_log": (heads,),
        "d": (heads,),
        "norm": (inner,),
        "out": (hidden_size, inner),
    }
    if c.flag("use_conv_bias", True):
        shapes["conv_bias"] = (mixed,)
    tensors = tuple(Extra(f"mamba_{role}", shape, Part.MIXER_OTHER) for role, shape in shapes.items())
    return Recurrent("mamba-2", tensors, state=inner * state + mixed * (kernel - 1))


FAMILY = Family(architectures=("NemotronHForCausalLM",), model_types=("nemotron_h",), read=read)

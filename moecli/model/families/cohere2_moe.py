"""Command A+ and North: attention and mixture read one norm of each block's input (Cohere2MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import (
    BODY,
    GROUPED_QUERY,
    MLP,
    SHARED_EXPERTS,
    Family,
    both_layouts,
    gguf_layouts,
)
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import NO_ROPE, FeedForward, Layer, Mixture, ModelSpec, NormKind, Router, Scoring

_SLIDING, _FULL = _KINDS = ("sliding_attention", "full_attention")
# Other implementations read them; transformers' is written for these values.
_NEUTRAL = dict.fromkeys(("use_parallel_block", "use_gated_activation"), (True, None))


def read(config: Mapping[str, Any]) -> ModelSpec:
    silent = {"tie_word_embeddings"} if config.get("tie_word_embeddings") is None else set()
    c = ConfigReader({k: v for k, v in config.items() if k not in silent}, "cohere2_moe", neutral=_NEUTRAL)
    hidden_size, context = c.count("hidden_size", 8192), c.count("max_position_embeddings", 8192)
    count, first = layer_count(c, 40), c.optional_count("first_k_dense_replace", 0, least=0) or 0
    pattern, prefix = c.count("sliding_window_pattern", 4), c.count("prefix_dense_sliding_window_pattern", 1)
    usual = [(i + 1) % prefix == 0 for i in range(first)] + [(i + 1) % pattern == 0 for i in range(count - first)]
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[full] for full in usual])
    usual_mlps = ["dense"] * first + ["sparse"] * (count - first)
    mlps = c.choices("mlp_layer_types", count, ("dense", "sparse"), usual_mlps)
    bias = c.flag("attention_bias", False)
    full = grouped_query(
        c, hidden_size, context, heads=64, head_dim=128, interleaved=True, qkv_bias=bias, output_bias=bias
    )
    sliding = replace(full, window=c.count("sliding_window", 4096))
    activation, width = c.activation("hidden_act", "silu"), c.count("intermediate_size", 22528)
    mixture = _mixture(c, FeedForward(width, activation))
    check_router(c, mixture)
    dense = FeedForward(c.optional_count("prefix_dense_intermediate_size") or width, activation)
    layers = []
    for kind, mlp in zip(kinds, mlps, strict=True):
        rotates = kind == _SLIDING or (mlp == "dense" and prefix == 1)
        attention = sliding if kind == _SLIDING else full if rotates else replace(full, rope=NO_ROPE)
        ffn = dense if mlp == "dense" else mixture
        layers.append(Layer(attention, ffn, ffn_reads_input=True, one_norm=True))
    layer_eps, rms_eps = c.number("layer_norm_eps", 1e-5), c.optional_number("rms_norm_eps")
    return make_spec(
        c, layers, hidden_size=hidden_size, context=context, vocab=256_000, tied=True,
        norm=NormKind.LAYER if rms_eps is None else NormKind.RMS, eps_key=None, eps=rms_eps or layer_eps,
        logit_multiplier=c.number("logit_scale", 0.0625),
    )  # fmt: skip


def _mixture(c: ConfigReader, expert: FeedForward) -> Mixture:
    """Experts are picked by logit; shared ones are added to their sum, or both are halved."""
    strategy = c.text("shared_expert_combination_strategy", "average")
    selection = c.text("expert_selection_fn", "softmax")
    if selection not in ("softmax", "sigmoid"):
        raise c.fail("expert_selection_fn", "names neither softmax nor sigmoid")
    if strategy not in ("average", "sum"):
        raise c.fail("shared_expert_combination_strategy", "names neither average nor sum")
    shared = c.count("num_shared_experts", 0, least=0)
    share = 0.5 if shared and strategy == "average" else 1.0
    normalised = c.flag("norm_topk_prob", True) and selection == "sigmoid"
    router = Router(
        c.count("num_experts", 8),
        c.count("num_experts_per_tok", 2),
        Scoring.SIGMOID if selection == "sigmoid" else Scoring.SOFTMAX_OF_CHOSEN,
        norm_power=1.0 if normalised else None,
        scaling=share,
    )
    wide = FeedForward(shared * expert.intermediate_size, expert.activation) if shared else None
    return Mixture(router, expert, wide, shared_scale=share)


FAMILY = Family(
    architectures=("Cohere2MoeForCausalLM",),
    model_types=("cohere2_moe",),
    read=read,
    layouts=(*both_layouts(BODY | GROUPED_QUERY | MLP | SHARED_EXPERTS), *gguf_layouts()),
)

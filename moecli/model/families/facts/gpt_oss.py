"""gpt-oss: attention sinks, every second layer a short window, experts with biases (GptOssForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import Activation, FeedForward, Layer, Mixture, ModelSpec, Router, Scoring
from moecli.model.unsupported import Unsupported

_KINDS = ("sliding_attention", "full_attention")


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "gpt_oss")
    hidden_size, context = c.count("hidden_size", 2880), c.count("max_position_embeddings", 131_072)
    bias = c.flag("attention_bias", True)
    full = grouped_query(
        c, hidden_size, context, heads=64, kv_heads=8, head_dim=64, theta=150_000.0, qkv_bias=bias, output_bias=bias
    )
    full = replace(full, sinks=True)
    sliding = replace(full, window=c.count("sliding_window", 128))
    c.expect("hidden_act", "silu")  # the clamped form of it
    c.ignore("swiglu_limit", "swiglu_alpha", "initial_context_length")  # constants of the activation; a leftover
    router = Router(
        c.count("num_local_experts", 128),
        c.count("num_experts_per_tok", c.raw("experts_per_token", 4)),
        Scoring.SOFTMAX_OF_CHOSEN,
        bias=True,
    )
    mixture = Mixture(router, FeedForward(c.count("intermediate_size", 2880), Activation.CLAMPED_SWIGLU, bias=True))
    check_router(c, mixture)
    count = layer_count(c, 36)
    kinds = c.choices("layer_types", count, _KINDS, [_KINDS[index % 2] for index in range(count)])
    return make_spec(
        c, [Layer(sliding if kind == "sliding_attention" else full, mixture) for kind in kinds],
        hidden_size=hidden_size, context=context, vocab=201_088, eps=1e-5,
        unsupported=(Unsupported.ATTENTION_SINKS, Unsupported.EXPERT_BIAS, Unsupported.CLAMPED_SWIGLU),
    )  # fmt: skip


FAMILY = Family(architectures=("GptOssForCausalLM",), model_types=("gpt_oss",), read=read)

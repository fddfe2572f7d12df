"""Llama 4 Scout and Maverick: one routed expert beside a shared one, attention in chunks (Llama4ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, grouped_query, language_part, layer_count, make_spec
from moecli.model.spec import NO_ROPE, FeedForward, Layer, Mixture, ModelSpec, Router, Scoring
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = language_part(config, "llama4")
    hidden_size, context = c.count("hidden_size", 5120), c.count("max_position_embeddings", 131_072)
    bias = c.flag("attention_bias", False)
    rotary = grouped_query(
        c, hidden_size, context, heads=40, kv_heads=8, head_dim=128, theta=500_000.0, qkv_bias=bias, output_bias=bias
    )
    chunk = c.optional_count("attention_chunk_size", 8192)
    rotary = replace(rotary, rope=replace(rotary.rope, interleaved=True), window=chunk, chunked=chunk is not None)
    nope = replace(rotary, rope=NO_ROPE, window=None, chunked=False)
    # No parameters: the norm of queries and keys has no weight, the others scale by position.
    c.ignore("use_qk_norm", "attn_temperature_tuning", "attn_scale", "floor_scale", "layer_types")
    c.ignore("for_llm_compressor", "cache_implementation")
    activation = c.activation("hidden_act", "silu")
    router = Router(c.count("num_local_experts", 16), c.count("num_experts_per_tok", 1), Scoring.SIGMOID_INPUT)
    expert = FeedForward(c.count("intermediate_size", 8192), activation)
    mixture = Mixture(router, expert, shared=expert)
    check_router(c, mixture)
    dense = FeedForward(c.count("intermediate_size_mlp", 16384), activation)
    count = layer_count(c, 48)
    every, nope_interval = c.count("interleave_moe_layer_step", 1), c.count("no_rope_layer_interval", 4)
    sparse = c.indices("moe_layers", count) or frozenset(range(every - 1, count, every))
    rope = c.raw("no_rope_layers", None) or [int((index + 1) % nope_interval != 0) for index in range(count)]
    if not isinstance(rope, list) or len(rope) != count:
        raise c.fail("no_rope_layers", f"must be a list with one entry for each of {count} layers")
    return make_spec(
        c,
        [Layer(rotary if rope[i] else nope, mixture if i in sparse else dense) for i in range(count)],
        hidden_size=hidden_size, context=context, vocab=202_048, eps=1e-5,
        unsupported=(Unsupported.CHUNKED_ATTENTION, Unsupported.INPUT_WEIGHTS, Unsupported.NO_POSITIONS),
        notes=("the text decoder alone: the vision tower is not counted",) if "vision_config" in config else (),
    )  # fmt: skip


FAMILY = Family(
    architectures=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    model_types=("llama4", "llama4_text"),
    read=read,
)

"""Snowflake Arctic: a dense transformer with a mixture of 128 experts beside it (ArcticForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import BODY, BUFFERS, GROUPED_QUERY, Family, Layout, gguf_layouts, names, per_expert
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import FeedForward, Layer, Mixture, ModelSpec, Router


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "arctic")
    hidden_size, context = c.count("hidden_size", 4096), c.count("max_position_embeddings", 4096)
    c.expect("attention_bias", False)
    attention = grouped_query(c, hidden_size, context, heads=32, theta=1e6, window=c.optional_count("sliding_window"))
    c.expect("parallel_attn_mlp_res", True, default=False)
    c.expect("moe_layer_frequency", 1, default=2)
    c.ignore(
        "use_residual", "enable_expert_tensor_parallelism", "moe_eval_capacity_factor", "moe_train_capacity_factor"
    )
    c.ignore("moe_min_capacity", "moe_token_dropping", "quantization")
    activation = c.activation("hidden_act", "silu")
    router = Router(c.count("num_local_experts", 8), c.count("num_experts_per_tok", 1), norm_power=1.0)
    mixture = Mixture(router, FeedForward(c.count("intermediate_size", 14336), activation))
    check_router(c, mixture)
    layer = Layer(attention, mixture, parallel=FeedForward(hidden_size, activation), ffn_reads_input=True)
    return make_spec(c, [layer] * layer_count(c, 32), hidden_size=hidden_size, context=context, vocab=32000, eps=1e-5)


_BLOCK = "model.layers.{layer}."
FAMILY = Family(
    architectures=("ArcticForCausalLM",),
    model_types=("arctic",),
    read=read,
    layouts=(
        Layout(
            BODY
            | GROUPED_QUERY
            | names(_BLOCK, parallel_norm="residual_layernorm", router="block_sparse_moe.gate")
            | names(_BLOCK + "residual_mlp.", parallel_gate_up="w1 w3", parallel_down="w2"),
            per_expert("block_sparse_moe.experts", "w1", "w3", "w2"),
            BUFFERS,
        ),
        *gguf_layouts(
            ffn_norm="ffn_norm_exps",
            parallel_norm="ffn_norm",
            parallel_gate_up="ffn_gate ffn_up",
            parallel_down="ffn_down",
        ),
    ),
)

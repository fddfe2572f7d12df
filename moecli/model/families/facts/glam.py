"""GLaM: never released; the hyperparameters of the paper, for its counts (arXiv 2112.06905)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecli.model.families._config import ConfigReader
from moecli.model.families._layout import Family
from moecli.model.families._parts import check_router, layer_count, make_spec
from moecli.model.spec import NO_ROPE, Activation, FeedForward, GroupedQuery, Layer, Mixture, ModelSpec, Router
from moecli.model.unsupported import Unsupported


def read(config: Mapping[str, Any]) -> ModelSpec:
    c = ConfigReader(config, "glam")
    c.ignore("_comment", "tokenizer", "position", "dense_ffn", "activation_dtype", "aux_loss_coef")
    c.ignore("n_params_published", "n_act_params_published")
    heads = c.count("n_heads")
    attention = GroupedQuery(heads, heads, head_dim := c.count("d_head"), NO_ROPE, head_dim**-0.5)
    dense = FeedForward(c.count("ffn_hidden"), Activation.GELU)
    mixture = Mixture(
        Router(c.count("n_experts"), c.count("top_k")),
        FeedForward(dense.intermediate_size, Activation.GELU, gated=False),
    )
    check_router(c, mixture)
    every = c.count("moe_every_n_layers")
    layers = layer_count(c, 64, "n_layers")
    return make_spec(
        c, [Layer(attention, mixture if (index + 1) % every == 0 else dense) for index in range(layers)],
        hidden_size=c.count("d_model"), context=c.count("context_length", 1024), eps=1e-5, eps_key=None, tied=True,
        unsupported=(Unsupported.NO_WEIGHTS,),
        notes=(
            "dense layers with three matrices, experts with two and a tied table give the paper's figures",
            "the paper does not give the size of the position bias, which is not counted",
        ),
    )  # fmt: skip


FAMILY = Family(architectures=(), model_types=("glam",), read=read, signature="moe_every_n_layers")

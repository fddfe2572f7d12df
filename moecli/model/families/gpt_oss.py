"""gpt-oss: attention sinks, every second layer a short window, experts with biases (GptOssForCausalLM)."""

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
from moecli.model.families._parts import check_router, grouped_query, layer_count, make_spec
from moecli.model.spec import Activation, FeedForward, Layer, Mixture, ModelSpec, Router, Scoring

_KINDS = ("sliding_attention", "full_attention")
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def read(config: Mapping[str, Any]) -> ModelSpec:
    config = _as_by_transformers(config)
    if config.get("rope_parameters") is None and config.get("rope_scaling") is None:
        config = {**config, "rope_parameters": _YARN}  # what the file does not say
    c = ConfigReader(config, "gpt_oss")
    c.alias("num_local_experts", "num_experts")
    hidden_size, context = c.count("hidden_size", 2880), c.count("max_position_embeddings", 131_072)
    bias = c.flag("attention_bias", True)
    full = grouped_query(
        c, hidden_size, context, heads=64, kv_heads=8, head_dim=64, theta=150_000.0, qkv_bias=bias, output_bias=bias
    )
    full = replace(full, sinks=True)
    sliding = replace(full, window=c.count("sliding_window", 128))
    c.expect("hidden_act", "silu")  # the clamped form of it
    c.expect("swiglu_limit", 7.0)
    c.expect("swiglu_alpha", 1.702)
    c.ignore("initial_context_length")  # a leftover
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
    )  # fmt: skip


def _as_by_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration as OpenAI's own release has it, beside `original/model.safetensors`, in transformers' words."""
    own = ("rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta", "initial_context_length")
    if "rope_ntk_alpha" not in config:
        return config
    c = ConfigReader({key: config[key] for key in own if key in config}, "gpt_oss")
    factor, trained = c.number("rope_scaling_factor", 32.0), c.count("initial_context_length", 4096)
    yarn = {
        "rope_type": "yarn", "factor": factor, "beta_fast": c.number("rope_ntk_beta", 32.0),
        "beta_slow": c.number("rope_ntk_alpha", 1.0), "truncate": False, "original_max_position_embeddings": trained,
    }  # fmt: skip
    rest = {key: value for key, value in config.items() if key not in own}
    return {"max_position_embeddings": int(trained * factor), "torch_dtype": "bfloat16", **rest, "rope_scaling": yarn}


_EXPERTS = "model.layers.{layer}.mlp.experts."


def _stacked(ending: str, transposed: bool) -> ExpertNames:
    """Outputs of gate and up take turns in one tensor."""
    gate, up = (
        NamedSlice(f"{_EXPERTS}gate_up_proj{ending}", True, half, interleaved=True, transposed=transposed)
        for half in (0, 1)
    )
    return ExpertNames(gate, up, NamedSlice(f"{_EXPERTS}down_proj{ending}", stacked=True, transposed=transposed))


def _mlx(ending: str) -> ExpertNames:
    return ExpertNames(
        *(NamedSlice(f"{_EXPERTS}{name}_proj.{ending}", stacked=True) for name in ("gate", "up", "down"))
    )


_DENSE = (
    BODY
    | GROUPED_QUERY
    | names("model.layers.{layer}.self_attn.", "", sinks="sinks")
    | names("model.layers.{layer}.mlp.", router="router")
    | names("model.layers.{layer}.mlp.router.", "", router_linear_bias="bias")
)
_RELEASE = "block.{layer}."
_RELEASED = (
    names(embedding="embedding", lm_head="unembedding")
    | names("", ".scale", final_norm="norm")
    | names(_RELEASE, ".scale", attn_norm="attn.norm", ffn_norm="mlp.norm")
    | names(_RELEASE, qkv="attn.qkv", o="attn.out", router="mlp.gate")
    | names(_RELEASE, ".bias", qkv_bias="attn.qkv", o_bias="attn.out", router_linear_bias="mlp.gate")
    | names(_RELEASE, "", sinks="attn.sinks")
)


def _released(ending: str, transposed: bool) -> ExpertNames:
    """Of OpenAI's own release, where outputs of gate and up take turns as well."""
    gate, up = (
        NamedSlice(f"{_RELEASE}mlp.mlp1_{ending}", True, half, interleaved=True, transposed=transposed)
        for half in (0, 1)
    )
    return ExpertNames(gate, up, NamedSlice(f"{_RELEASE}mlp.mlp2_{ending}", stacked=True, transposed=transposed))


FAMILY = Family(
    architectures=("GptOssForCausalLM",),
    model_types=("gpt_oss",),
    read=read,
    layouts=(
        Layout(_DENSE, _stacked("", transposed=True), BUFFERS, biases=_stacked("_bias", transposed=False)),
        Layout(_DENSE, _mlx("weight"), BUFFERS, biases=_mlx("bias")),
        Layout(_RELEASED, _released("weight", transposed=True), BUFFERS, biases=_released("bias", transposed=False)),
        *gguf_layouts(ffn_norm="post_attention_norm"),
    ),
    signature="rope_ntk_alpha",
)

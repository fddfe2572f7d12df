"""Architectures of llama.cpp whose layers differ in attention: some see a window, and what else goes with that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moecli.errors import ConfigError
from moecli.model.gguf.metadata import SIGMOID, SOFTMAX_OF_CHOSEN, Metadata, common, grouped_router, head_dim, router

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _kinds(said: Metadata, layers: int, every: int, full_first: bool = False) -> dict[str, Any]:
    """The window, and which layers have it: as the file says, else all but the last, or first, of every so many."""
    pattern = said.get("attention.sliding_window_pattern", every)
    if isinstance(pattern, bool):  # a list that says the same of each layer
        pattern = [pattern] * layers
    elif type(pattern) is int and pattern > 0:
        full = 0 if full_first else pattern - 1
        pattern = [index % pattern != full for index in range(layers)]
    if not isinstance(pattern, list) or len(pattern) < layers or any(type(each) is not bool for each in pattern):
        raise ConfigError("'attention.sliding_window_pattern' of the GGUF file does not say which layers have a window")
    return {
        "sliding_window": said.need("attention.sliding_window"),
        "layer_types": [_SLIDING if each else _FULL for each in pattern[:layers]],
    }


def _same_base(said: Metadata) -> None:
    """ConfigError where windows rotate by another base: these models have one."""
    said.expect("rope.freq_base_swa", said.get("rope.freq_base"))


def _gpt_oss(said: Metadata) -> dict[str, Any]:
    config = common(said) | head_dim(said)
    if "rope_scaling" in config:
        config["rope_scaling"] |= {"truncate": False}  # which no key says
    _same_base(said)
    return (
        config
        | _kinds(said, said.count("block_count"), 2)
        | router(said, "num_local_experts", gating=SOFTMAX_OF_CHOSEN)
        | {
            "architectures": ["GptOssForCausalLM"],
            "intermediate_size": said.expert_width,
            "attention_bias": said.holds("attn_q.bias"),
        }
    )


def _afmoe(said: Metadata) -> dict[str, Any]:
    said.expect("expert_weights_norm", True)
    said.expect("expert_gating_func", SIGMOID)
    _same_base(said)
    return (
        common(said)
        | head_dim(said)
        | _kinds(said, said.count("block_count"), 4)
        | {
            "architectures": ["AfmoeForCausalLM"],
            "mup_enabled": True,  # as llama.cpp takes it for each of them
            "intermediate_size": said.need("feed_forward_length"),
            "moe_intermediate_size": said.expert_width,
            "num_dense_layers": said.get("leading_dense_block_count", 0),
            "num_experts": said.need("expert_count"),
            "num_experts_per_tok": said.need("expert_used_count"),
            "num_shared_experts": said.need("expert_shared_count"),
            "route_scale": said.get("expert_weights_scale") or 1.0,
        }
    )


def _exaone_moe(said: Metadata) -> dict[str, Any]:
    blocks, beyond = said.count("block_count"), said.get("nextn_predict_layers") or 0
    if type(beyond) is not int or not 0 <= beyond < blocks:
        raise ConfigError("the GGUF file has more layers that predict further tokens than blocks")
    layers, shared = blocks - beyond, said.get("expert_shared_count", 0)
    _same_base(said)
    return (
        common(said)
        | head_dim(said)
        | _kinds(said, layers, 4)
        | grouped_router(said, "num_experts")
        | {
            "architectures": ["ExaoneMoeForCausalLM"],
            "num_hidden_layers": layers,
            "num_nextn_predict_layers": beyond,
            "first_k_dense_replace": said.get("leading_dense_block_count", 0),
            "intermediate_size": said.need("feed_forward_length"),
            "moe_intermediate_size": said.expert_width,
            "num_shared_experts": shared,
        }
    )


def _cohere2_moe(said: Metadata) -> dict[str, Any]:
    layers, width = said.count("block_count"), said.expert_width
    said.expect("expert_gating_func", SIGMOID)
    said.expect("nextn_predict_layers", 0)
    _same_base(said)
    shared = said.get("expert_shared_count", 0)
    rms = said.get("attention.layer_norm_rms_epsilon")
    config = common(said) | head_dim(said) | _kinds(said, layers, 4, full_first=True)
    return config | {
        "architectures": ["Cohere2MoeForCausalLM"],
        "rms_norm_eps": rms,
        "layer_norm_eps": said.get("attention.layer_norm_epsilon", 1e-5),
        "first_k_dense_replace": said.get("leading_dense_block_count", 0),
        "prefix_dense_intermediate_size": said.need("feed_forward_length"),
        "intermediate_size": width,
        "num_experts": said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "num_shared_experts": shared,
        "expert_selection_fn": "sigmoid",
        "norm_topk_prob": bool(said.get("expert_weights_norm", False)),
        "logit_scale": said.need("logit_scale"),
        "sliding_window_pattern": 4,
    }


def _llama4(said: Metadata) -> dict[str, Any]:
    """What llama.cpp has as constants are the configuration's defaults: chunks of 8192, growing queries."""
    experts = said.count("expert_count")
    said.expect("attention.sliding_window", 8192)
    said.expect("attention.sliding_window_pattern", 4)
    _same_base(said)
    return (
        common(said)
        | head_dim(said)
        | {
            "architectures": ["Llama4ForCausalLM"],
            "num_local_experts": experts,
            "num_experts_per_tok": said.need("expert_used_count"),
            "intermediate_size": said.expert_width,
            "intermediate_size_mlp": said.need("feed_forward_length"),
            "interleave_moe_layer_step": said.need("interleave_moe_layer_step"),
            "use_qk_norm": experts != 128,  # of Maverick, which has none
        }
    )


def _laguna(said: Metadata) -> dict[str, Any]:
    layers, width = said.count("block_count"), said.count("attention.key_length")
    said.expect("attention.value_length", width)
    heads = said.each("attention.head_count", layers)
    windowed = said.get("attention.sliding_window") or 0
    kinds = _kinds(said, layers, 4, full_first=True) if windowed else {"layer_types": [_FULL] * layers}
    said.expect("expert_gating_func", SIGMOID)
    said.expect("expert_weights_norm", True)
    said.expect("expert_shared_count", 1)
    dense = said.count("leading_dense_block_count", 1)
    gates = said.axis("blk.0.attn_gate.weight", 0)
    if gates not in (heads[0], heads[0] * width):
        raise ConfigError(f"blk.0.attn_gate.weight of the GGUF file has {gates} rows for {heads[0]} heads of {width}")
    config = common(said, said.count("rope.dimension_count", width), heads=max(heads), width=width)
    scaling = config.pop("rope_scaling", {"type": "default"})
    ropes = {_FULL: {**scaling, "rope_type": scaling["type"]} | _rotation(said, "", config.pop("rope_theta"), width)}
    if windowed:
        ropes[_SLIDING] = {"rope_type": "default"} | _rotation(said, "_swa", said.get("rope.freq_base_swa"), width)
    return config | kinds | {
        "architectures": ["LagunaForCausalLM"],
        "head_dim": width,
        "num_attention_heads_per_layer": heads,
        "rope_parameters": ropes,
        "gating": "per-head" if gates == heads[0] else "per-element",
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (layers - dense),
        "intermediate_size": said.need("feed_forward_length"),
        "moe_intermediate_size": said.expert_width,
        "shared_expert_intermediate_size": said.axis("ffn_down_shexp.weight", -1),
        "num_experts": said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "moe_routed_scaling_factor": said.get("expert_weights_scale") or 1.0,
    }  # fmt: skip


def _rotation(said: Metadata, ending: str, theta: Any, width: int) -> dict[str, Any]:
    share = said.count(f"rope.dimension_count{ending}", width) / width
    return {"rope_theta": theta, "partial_rotary_factor": share}


READERS: Mapping[str, Callable[[Metadata], dict[str, Any]]] = {
    "gpt-oss": _gpt_oss,
    "afmoe": _afmoe,
    "exaone-moe": _exaone_moe,
    "cohere2moe": _cohere2_moe,
    "llama4": _llama4,
    "laguna": _laguna,
}

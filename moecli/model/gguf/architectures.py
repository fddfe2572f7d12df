"""One function for each architecture of llama.cpp whose GGUF files are read: its keys -> keys of config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moecli.errors import ConfigError
from moecli.model.gguf.metadata import SIGMOID, SOFTMAX, Metadata, common, grouped_router, head_dim, router

# What files of before these keys do not say, by the number of experts: V2 and V3 choose groups of experts first.
_GROUPS = {160: (8, 3), 256: (8, 4)}


def _llama(said: Metadata) -> dict[str, Any]:
    config = common(said) | head_dim(said)
    if not said.get("expert_count"):
        said.expect("expert_used_count", 0)
        width = said.need("feed_forward_length")
        return config | {"architectures": ["LlamaForCausalLM"], "intermediate_size": width}
    return (
        config
        | router(said, "num_local_experts")
        | {
            "architectures": ["MixtralForCausalLM"],
            "intermediate_size": said.expert_width,
            "sliding_window": None,
        }
    )


def _olmoe(said: Metadata) -> dict[str, Any]:
    return (
        common(said)
        | router(said, "num_experts", norm=False)
        | {
            "architectures": ["OlmoeForCausalLM"],
            "intermediate_size": said.expert_width,
            "norm_topk_prob": False,
            "clip_qkv": said.get("attention.clamp_kqv"),
        }
    )


def _qwen(said: Metadata, norm: bool) -> dict[str, Any]:
    """What the generations of Qwen's mixtures share."""
    return (
        common(said)
        | head_dim(said)
        | router(said, "num_experts", norm=norm)
        | {
            "norm_topk_prob": norm,
            "intermediate_size": said.need("feed_forward_length"),
            "moe_intermediate_size": said.expert_width,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
        }
    )


def _qwen2_moe(said: Metadata) -> dict[str, Any]:
    return _qwen(said, norm=False) | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "shared_expert_intermediate_size": said.axis("ffn_down_shexp.weight", -1),
        "qkv_bias": said.holds("attn_q.bias"),
    }


def _qwen3_moe(said: Metadata) -> dict[str, Any]:
    return _qwen(said, norm=True) | {"architectures": ["Qwen3MoeForCausalLM"]}


def _qwen3_vl_moe(said: Metadata) -> dict[str, Any]:
    """The text model; sections of its rope and the layers that see pictures say nothing of texts."""
    said.get("rope.dimension_sections")
    said.get("n_deepstack_layers")
    return _qwen(said, norm=True) | {"architectures": ["Qwen3VLMoeForConditionalGeneration"]}


def _dbrx(said: Metadata) -> dict[str, Any]:
    experts = router(said, "moe_num_experts", "moe_top_k")
    said.expect("attention.layer_norm_epsilon", 1e-5)
    said.expect("rope.dimension_count", said.head_dim)
    return {
        "architectures": ["DbrxForCausalLM"],
        "d_model": said.need("embedding_length"),
        "n_heads": said.need("attention.head_count"),
        "n_layers": said.need("block_count"),
        "max_seq_len": said.need("context_length"),
        "attn_config": {
            "kv_n_heads": said.need("attention.head_count_kv"),
            "clip_qkv": said.get("attention.clamp_kqv"),
            "rope_theta": said.get("rope.freq_base", 10_000.0),
        },
        "ffn_config": experts | {"ffn_hidden_size": said.expert_width, "moe_normalize_expert_weights": 1.0},
    }


def _grok(said: Metadata) -> dict[str, Any]:
    """Grok-1, whose constants older files leave to the program that runs them."""
    config = common(said) | router(said, "num_experts")
    del config["rope_theta"], config["rms_norm_eps"]
    named = {
        "embedding_multiplier_scale": "embedding_scale",
        "output_multiplier_scale": "logit_scale",
        "attn_output_multiplier": "attention.output_scale",
    }
    said.expect("attn_logit_softcapping", 30.0)
    said.expect("router_logit_softcapping", 30.0)
    said.expect("final_logit_softcapping", 0.0)
    said.expect("attention.temperature_length", 0)
    return (
        config
        | {key: said.get(name) for key, name in named.items() if said.get(name) is not None}
        | {
            "architectures": ["Grok1ModelForCausalLM"],
            "tie_word_embeddings": True,  # some files hold the table twice
            "intermediate_size": said.expert_width,
        }
    )


def _arctic(said: Metadata) -> dict[str, Any]:
    return (
        common(said)
        | router(said, "num_local_experts")
        | {
            "architectures": ["ArcticForCausalLM"],
            "intermediate_size": said.expert_width,
            "parallel_attn_mlp_res": True,
            "moe_layer_frequency": 1,
            "sliding_window": None,
        }
    )


def _granite_moe(said: Metadata) -> dict[str, Any]:
    scale = said.get("attention.scale")
    return (
        common(said)
        | router(said, "num_local_experts")
        | {
            "architectures": ["GraniteMoeForCausalLM"],
            "intermediate_size": said.expert_width,
            "attention_multiplier": scale or said.head_dim**-0.5,
            "embedding_multiplier": said.get("embedding_scale") or 1.0,
            "residual_multiplier": said.get("residual_scale") or 1.0,
            "logits_scaling": said.need("logit_scale"),
        }
    )


def _ernie(said: Metadata) -> dict[str, Any]:
    shared = {"moe_num_shared_experts": said.get("expert_shared_count", 0)}
    return (
        common(said)
        | head_dim(said)
        | router(said, "moe_num_experts", "moe_k")
        | shared
        | {
            "architectures": ["Ernie4_5_MoeForCausalLM"],
            "intermediate_size": said.need("feed_forward_length"),
            "moe_intermediate_size": said.expert_width,
            "moe_layer_start_index": said.get("leading_dense_block_count", 0),
            "moe_layer_interval": said.get("interleave_moe_layer_step", 1),
            "moe_layer_end_index": -1,
        }
    )


def _hunyuan(said: Metadata) -> dict[str, Any]:
    """Its scaling "dynamic" is in the base of the rotation already."""
    shared = said.count("expert_shared_count", 1)
    return (
        common(said)
        | router(said, "num_experts", "moe_topk")
        | {
            "architectures": ["HunYuanMoEV1ForCausalLM"],
            "attention_head_dim": said.head_dim,
            "intermediate_size": said.axis("ffn_down_shexp.weight", -1) // shared,
            "moe_intermediate_size": said.expert_width,
            "num_shared_expert": shared,
            "use_qk_norm": said.holds("attn_q_norm.weight"),
            "norm_topk_prob": True,
        }
    )


def _minimax_m2(said: Metadata) -> dict[str, Any]:
    rotary = said.count("rope.dimension_count", said.head_dim)
    said.expect("nextn_predict_layers", 0)
    return (
        common(said, rotary)
        | head_dim(said)
        | router(said, "num_local_experts", gating=SIGMOID)
        | {
            "architectures": ["MiniMaxM2ForCausalLM"],
            "intermediate_size": said.expert_width,
            "rotary_dim": rotary,
        }
    )


def _dense_first(said: Metadata) -> dict[str, Any]:
    """What DeepSeek's descendants share: dense layers before the mixtures, predicting layers behind, widths."""
    beyond, blocks = said.get("nextn_predict_layers") or 0, said.count("block_count")
    if type(beyond) is not int or not 0 <= beyond < blocks:
        raise ConfigError("the GGUF file has more layers that predict further tokens than blocks")
    return {
        "num_hidden_layers": blocks - beyond,
        "num_nextn_predict_layers": beyond,
        "first_k_dense_replace": said.get("leading_dense_block_count", 0),
        "intermediate_size": said.need("feed_forward_length"),
        "moe_intermediate_size": said.expert_width,
    }


def _deepseek(said: Metadata) -> dict[str, Any]:
    """DeepSeekMoE-16B."""
    dense = _dense_first(said)
    del dense["num_nextn_predict_layers"]
    return (
        common(said)
        | dense
        | router(said, "n_routed_experts", norm=False)
        | {
            "architectures": ["DeepseekForCausalLM"],
            "n_shared_experts": said.get("expert_shared_count", 0),
            "norm_topk_prob": False,
        }
    )


def _dots1(said: Metadata) -> dict[str, Any]:
    dense = _dense_first(said)
    del dense["num_nextn_predict_layers"]
    return (
        common(said)
        | head_dim(said)
        | dense
        | grouped_router(said, "n_routed_experts")
        | {
            "architectures": ["Dots1ForCausalLM"],
            "n_shared_experts": said.get("expert_shared_count", 0),
            "sliding_window": None,
        }
    )


def _glm4_moe(said: Metadata) -> dict[str, Any]:
    rotary = said.count("rope.dimension_count", said.head_dim)
    return (
        common(said, rotary)
        | head_dim(said)
        | _dense_first(said)
        | grouped_router(said, "n_routed_experts")
        | {
            "architectures": ["Glm4MoeForCausalLM"],
            "n_shared_experts": said.get("expert_shared_count", 0),
            "partial_rotary_factor": rotary / said.head_dim,
            "attention_bias": said.holds("attn_q.bias"),
            "use_qk_norm": said.holds("attn_q_norm.weight"),
        }
    )


def _bailing_moe2(said: Metadata) -> dict[str, Any]:
    """Ling and Ring 2.0."""
    rotary, shared = said.count("rope.dimension_count", said.head_dim), said.count("expert_shared_count", 1)
    return (
        common(said, rotary)
        | {"head_dim": said.head_dim}
        | _dense_first(said)
        | grouped_router(said, "num_experts")
        | {
            "architectures": ["BailingMoeV2ForCausalLM"],
            "num_shared_experts": shared,
            "moe_shared_expert_intermediate_size": said.axis("ffn_down_shexp.weight", -1) // shared,
            "partial_rotary_factor": rotary / said.head_dim,
            "use_qkv_bias": said.holds("attn_qkv.bias"),
            "use_bias": said.holds("attn_output.bias"),
            "use_qk_norm": said.holds("attn_q_norm.weight"),
            "score_function": "sigmoid",
        }
    )


def _deepseek2(said: Metadata) -> dict[str, Any]:
    """V2, V3 and their descendants. Newer files have two widths of keys: `_mla` is that of the model."""
    experts, rope_dim = said.need("expert_count"), said.count("rope.dimension_count")
    width = said.get("attention.key_length_mla") or said.need("attention.key_length")
    value = said.get("attention.value_length_mla") or said.need("attention.value_length")
    if not (type(width) is int and width > rope_dim):
        raise ConfigError("the GGUF file has keys no wider than what rotates of them")
    gating = said.get("expert_gating_func")
    said.expect("expert_gating_func", 0, SOFTMAX, SIGMOID)
    # Converters leave the rule out where config.json does; only routers with a sigmoid have a correction bias.
    sigmoid_ = gating == SIGMOID or (not gating and said.holds("exp_probs_b.bias"))
    usual = _GROUPS.get(experts, (1, 1)) if type(experts) is int else (1, 1)
    groups = said.get("expert_group_count", usual[0]), said.get("expert_group_used_count", usual[1])
    config = common(said, rope_dim) | _dense_first(said) | {
        "architectures": ["DeepseekV3ForCausalLM" if sigmoid_ else "DeepseekV2ForCausalLM"],
        "num_key_value_heads": said.need("attention.head_count"),
        "n_routed_experts": experts,
        "num_experts_per_tok": said.need("expert_used_count"),
        "n_shared_experts": said.get("expert_shared_count", 0),
        "routed_scaling_factor": said.get("expert_weights_scale") or 1.0,
        "norm_topk_prob": bool(said.get("expert_weights_norm", False)),
        "q_lora_rank": said.get("attention.q_lora_rank"),
        "kv_lora_rank": said.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": width - rope_dim,
        "v_head_dim": value,
        "n_group": groups[0],
        "topk_group": groups[1],
    }  # fmt: skip
    said.expect("attention.temperature_scale", 0.0)
    said.expect("attention.temperature_length", 0)
    if not sigmoid_:
        if config.pop("num_nextn_predict_layers"):
            raise ConfigError("the GGUF file is of a DeepSeek-V2 that predicts further tokens, which there is not")
        if groups[0] and groups[0] != 1:
            config["topk_method"] = "group_limited_greedy"
    multiplier = said.get("rope.scaling.yarn_log_multiplier")
    if "rope_scaling" in config and multiplier is not None:
        mscale = float(f"{10 * multiplier:.7g}") if isinstance(multiplier, float) else multiplier
        config["rope_scaling"] = {"beta_fast": 32, "beta_slow": 1} | config["rope_scaling"]
        config["rope_scaling"] |= {"mscale": mscale, "mscale_all_dim": mscale}
    return config


READERS: Mapping[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": _llama,
    "olmoe": _olmoe,
    "qwen2moe": _qwen2_moe,
    "qwen3moe": _qwen3_moe,
    "qwen3vlmoe": _qwen3_vl_moe,
    "deepseek": _deepseek,
    "deepseek2": _deepseek2,
    "dbrx": _dbrx,
    "grok": _grok,
    "glm4moe": _glm4_moe,
    "granitemoe": _granite_moe,
    "arctic": _arctic,
    "minimax-m2": _minimax_m2,
    "ernie4_5-moe": _ernie,
    "hunyuan-moe": _hunyuan,
    "bailingmoe2": _bailing_moe2,
    "dots1": _dots1,
}

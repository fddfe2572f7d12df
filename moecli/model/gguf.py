"""What a GGUF file says of its model, as the config.json that the model was published with would say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moecli.errors import ConfigError, printable

Shapes = Mapping[str, tuple[int, ...]]  # of its tensors, by name
_HINT = "the file is damaged, or was made by a converter that leaves this out: look for another one of the model"
_SIGMOID = 2  # llama.cpp's number for the router of DeepSeek-V3
# What files of before these keys do not say, by the number of experts: V2 and V3 choose groups of experts first.
_GROUPS = {160: (8, 3), 256: (8, 4)}


class _Metadata:
    """The values of one architecture, by the rest of their key."""

    def __init__(self, values: Mapping[str, Any], architecture: str, shapes: Shapes) -> None:
        self._values, self.architecture, self.shapes = values, architecture, shapes

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ConfigError(f"the GGUF file lacks '{self.architecture}.{key}'", _HINT)
        return value

    def axis(self, name: str, axis: int) -> int:
        """A length that only a tensor tells: of the first block that has it."""
        found = [shape for key, shape in self.shapes.items() if key == name or key.endswith(f".{name}")]
        if not found or len(found[0]) < abs(axis):
            raise ConfigError(f"the GGUF file lacks '{name}'", _HINT)
        return found[0][axis]

    @property
    def expert_width(self) -> int:
        stacked = any(key.endswith(".ffn_down_exps.weight") for key in self.shapes)
        return self.axis("ffn_down_exps.weight" if stacked else "ffn_down.0.weight", -1)


def config_of(metadata: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The configuration, for `families.find`. ConfigError for an architecture that is not read, or a key it lacks."""
    architecture = metadata.get("general.architecture")
    read = _READERS.get(architecture) if isinstance(architecture, str) else None
    if read is None:
        raise ConfigError(
            f"GGUF files of the architecture '{printable(str(architecture), 40)}' are not read",
            f"those of {', '.join(_READERS)} are",
        )
    said = _Metadata(metadata, str(architecture), shapes)
    return {
        "vocab_size": said.axis("token_embd.weight", 0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "torch_dtype": "bfloat16",
        **read(said),
    }


def _common(said: _Metadata) -> dict[str, Any]:
    """What most families spell alike."""
    heads = said.need("attention.head_count")
    config = {
        "hidden_size": said.need("embedding_length"),
        "num_hidden_layers": said.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": said.get("attention.head_count_kv", heads),
        "max_position_embeddings": said.need("context_length"),
        "rms_norm_eps": _rounded(said.get("attention.layer_norm_rms_epsilon", 1e-5)),
        "rope_theta": _rounded(said.get("rope.freq_base", 10_000.0)),
    }
    scaling = _scaling(said)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _scaling(said: _Metadata) -> dict[str, Any] | None:
    kind = said.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    found = {"type": kind, "factor": said.need("rope.scaling.factor")}
    original = said.get("rope.scaling.original_context_length")
    return found | ({"original_max_position_embeddings": original} if kind == "yarn" and original else {})


def _rounded(value: Any) -> Any:
    """A number that went through float32, as it was written."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _head_dim(said: _Metadata) -> dict[str, Any]:
    width = said.get("attention.key_length")
    return {} if width is None else {"head_dim": width}


def _llama(said: _Metadata) -> dict[str, Any]:
    common = _common(said) | _head_dim(said)
    if not said.get("expert_count"):
        width = said.need("feed_forward_length")
        return common | {"architectures": ["LlamaForCausalLM"], "intermediate_size": width}
    return common | {
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": said.expert_width,
        "num_local_experts": said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "sliding_window": None,
    }


def _olmoe(said: _Metadata) -> dict[str, Any]:
    return _common(said) | {
        "architectures": ["OlmoeForCausalLM"],
        "intermediate_size": said.expert_width,
        "num_experts": said.need("expert_count"),
        "num_experts_per_tok": said.need("expert_used_count"),
        "norm_topk_prob": False,
        "clip_qkv": said.get("attention.clamp_kqv"),
    }


def _qwen3_moe(said: _Metadata) -> dict[str, Any]:
    return (
        _common(said)
        | _head_dim(said)
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "intermediate_size": said.need("feed_forward_length"),
            "moe_intermediate_size": said.expert_width,
            "num_experts": said.need("expert_count"),
            "num_experts_per_tok": said.need("expert_used_count"),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
        }
    )


def _dbrx(said: _Metadata) -> dict[str, Any]:
    return {
        "architectures": ["DbrxForCausalLM"],
        "d_model": said.need("embedding_length"),
        "n_heads": said.need("attention.head_count"),
        "n_layers": said.need("block_count"),
        "max_seq_len": said.need("context_length"),
        "attn_config": {
            "kv_n_heads": said.need("attention.head_count_kv"),
            "clip_qkv": said.get("attention.clamp_kqv"),
            "rope_theta": _rounded(said.get("rope.freq_base", 10_000.0)),
        },
        "ffn_config": {
            "ffn_hidden_size": said.expert_width,
            "moe_num_experts": said.need("expert_count"),
            "moe_top_k": said.need("expert_used_count"),
            "moe_normalize_expert_weights": 1.0,
        },
    }


def _grok(said: _Metadata) -> dict[str, Any]:
    """Grok-1, whose constants older files leave to the program that runs them."""
    common = _common(said)
    del common["rope_theta"], common["rms_norm_eps"]
    named = {
        "embedding_multiplier_scale": "embedding_scale",
        "output_multiplier_scale": "logit_scale",
        "attn_output_multiplier": "attention.output_scale",
    }
    constants = {key: said.get(name) for key, name in named.items() if said.get(name) is not None}
    return (
        common
        | constants
        | {
            "architectures": ["Grok1ModelForCausalLM"],
            "tie_word_embeddings": True,  # some files hold the table twice
            "intermediate_size": said.expert_width,
            "num_experts": said.need("expert_count"),
            "num_experts_per_tok": said.need("expert_used_count"),
        }
    )


def _deepseek2(said: _Metadata) -> dict[str, Any]:
    """V2, V3 and their descendants. Newer files have two widths of keys: `_mla` is that of the model."""
    experts, rope_dim = said.need("expert_count"), said.need("rope.dimension_count")
    width = said.get("attention.key_length_mla") or said.need("attention.key_length")
    value = said.get("attention.value_length_mla") or said.need("attention.value_length")
    if not (type(width) is int and type(rope_dim) is int and width > rope_dim):
        raise ConfigError("the GGUF file has keys no wider than what rotates of them", _HINT)
    sigmoid = said.get("expert_gating_func") == _SIGMOID
    usual = _GROUPS.get(experts, (1, 1)) if type(experts) is int else (1, 1)
    groups = said.get("expert_group_count", usual[0]), said.get("expert_group_used_count", usual[1])
    config = _common(said) | {
        "architectures": ["DeepseekV3ForCausalLM" if sigmoid else "DeepseekV2ForCausalLM"],
        "num_key_value_heads": said.need("attention.head_count"),
        "intermediate_size": said.need("feed_forward_length"),
        "moe_intermediate_size": said.expert_width,
        "n_routed_experts": experts,
        "num_experts_per_tok": said.need("expert_used_count"),
        "n_shared_experts": said.get("expert_shared_count", 0),
        "first_k_dense_replace": said.get("leading_dense_block_count", 0),
        "routed_scaling_factor": _rounded(said.get("expert_weights_scale") or 1.0),
        "norm_topk_prob": bool(said.get("expert_weights_norm", False)),
        "q_lora_rank": said.get("attention.q_lora_rank"),
        "kv_lora_rank": said.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": width - rope_dim,
        "v_head_dim": value,
        "n_group": groups[0],
        "topk_group": groups[1],
    }
    if sigmoid:
        config["num_nextn_predict_layers"] = 0
    elif groups[0] and groups[0] != 1:
        config["topk_method"] = "group_limited_greedy"
    if "rope_scaling" in config and (multiplier := said.get("rope.scaling.yarn_log_multiplier")) is not None:
        mscale = _rounded(10 * multiplier) if isinstance(multiplier, float) else multiplier
        config["rope_scaling"] |= {"mscale": mscale, "mscale_all_dim": mscale, "beta_fast": 32, "beta_slow": 1}
    return config


_READERS: Mapping[str, Callable[[_Metadata], dict[str, Any]]] = {
    "llama": _llama,
    "olmoe": _olmoe,
    "qwen3moe": _qwen3_moe,
    "deepseek2": _deepseek2,
    "dbrx": _dbrx,
    "grok": _grok,
}

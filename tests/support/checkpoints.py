"""Tiny random checkpoints of every family, made by transformers: as published, in shards, or as a raw state dict."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from tests.support.oracle import transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY = 97
_BASE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
_LATENT = {
    "num_key_value_heads": 4, "intermediate_size": 40, "moe_intermediate_size": 16, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "first_k_dense_replace": 1,
}  # fmt: skip
_ROUTED = {
    "intermediate_size": 40, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1,
}  # fmt: skip
_DELTA = {
    "num_hidden_layers": 4, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 12, "linear_value_head_dim": 10, "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 20,
}  # fmt: skip
_QWEN = {"intermediate_size": 40, "moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 3}

# By family that runs, one row: the stem of its transformers classes, and a configuration that is small but not
# degenerate. The tests of parity, of reading and of names on disk take their families from here.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", _BASE | {"intermediate_size": 24, "num_local_experts": 5}),
    "dbrx": (
        "Dbrx",
        {
            "vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256,
            # transformers 5.23 rotates by 10000 whatever the file says; the real base is in the reference fixture.
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 6, "moe_top_k": 3},
        },
    ),
    "deepseek_v2": ("DeepseekV2", _BASE | _LATENT | {"q_lora_rank": 12, "n_shared_experts": 2}),
    "deepseek_v3": ("DeepseekV3", _BASE | _LATENT | {"q_lora_rank": 12, "n_group": 4, "topk_group": 2}),
    "granitemoe": (
        "GraniteMoe",
        _BASE
        | {
            "intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 3, "tie_word_embeddings": True,
            "attention_multiplier": 0.2, "embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.4,
        },
    ),
    "dots1": ("Dots1", _BASE | _ROUTED | {"n_group": 2, "topk_group": 1, "sliding_window": None}),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        _BASE | {"intermediate_size": 40, "moe_intermediate_size": 16, "moe_num_experts": 6, "moe_k": 3},
    ),
    "glm4_moe": ("Glm4Moe", _BASE | _ROUTED | {"head_dim": 12, "attention_bias": True}),
    "glm4_moe_lite": (
        "Glm4MoeLite",
        _BASE | _LATENT | {"q_lora_rank": 12, "n_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]},
    ),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1",
        _BASE | {"intermediate_size": 24, "num_experts": 6, "moe_topk": 3, "head_dim": 12, "tie_word_embeddings": True},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        _BASE
        | {
            "num_hidden_layers": 3, "intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 3,
            "shared_intermediate_size": 20, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 12,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"], "attention_multiplier": 0.2,
            "embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.4,
        },
    ),
    "jamba": (
        "Jamba",
        _BASE
        | {
            "num_hidden_layers": 4, "intermediate_size": 24, "num_experts": 4, "mamba_d_state": 6, "mamba_dt_rank": 5,
            "attn_layer_period": 3, "attn_layer_offset": 1,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        _BASE
        | {
            "num_hidden_layers": 4, "intermediate_size": 40, "moe_intermediate_size": 16, "num_experts": 6,
            "num_experts_per_tok": 3, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv", "conv"],
        },
    ),
    "nemotron_h": (
        "NemotronH",
        _BASE
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
            "intermediate_size": 40, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 24,
            "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 2, "topk_group": 1, "ssm_state_size": 12,
            "mamba_num_heads": 4, "mamba_head_dim": 10, "n_groups": 2, "head_dim": 12, "time_step_min": 1e-30,
        },
    ),
    "llama": ("Llama", _BASE | {"intermediate_size": 40}),
    "minimax_m2": (
        "MiniMaxM2",
        _BASE
        | {
            "intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 12, "rotary_dim": 8,
        },
    ),
    "mistral": ("Mistral", _BASE | {"intermediate_size": 40, "sliding_window": None}),
    "olmoe": ("Olmoe", _BASE | {"intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}),
    "qwen2_moe": ("Qwen2Moe", _BASE | _QWEN | {"shared_expert_intermediate_size": 20}),
    "qwen3_moe": ("Qwen3Moe", _BASE | _QWEN | {"head_dim": 16}),
    "qwen3_next": ("Qwen3Next", _BASE | _QWEN | _DELTA),
    "qwen3_5_moe": ("Qwen3_5Moe", _BASE | _QWEN | _DELTA),
    "switch_transformers": (
        "SwitchTransformers",
        {
            "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_heads": 4, "num_layers": 4,
            "num_decoder_layers": 4, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2, "num_experts": 6,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
            "expert_capacity": 9,
        },
    ),
}  # fmt: skip
ENCODER_DECODERS = ("switch_transformers",)
DENSE = ("llama", "mistral")
DECODERS = tuple(family for family in FAMILIES if family not in ENCODER_DECODERS)
MIXTURES = tuple(family for family in DECODERS if family not in DENSE)
LAYOUTS = ("published", "fused")


def make(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of `family`; `changes` are keys of its configuration, one level deep where they are objects."""
    config = configuration(family, **changes)
    config._attn_implementation = "eager"
    model = getattr(transformers(), class_name(family))(config).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    if (
        family in ENCODER_DECODERS
    ):  # one table, as in every published file; with a head of its own, transformers 5 has three
        for stack in (model.encoder, model.decoder):
            stack.embed_tokens.weight = model.shared.weight
    return model


def configuration(family: str, **changes: Any) -> PretrainedConfig:
    """What config.json says of the model that `make` makes."""
    settings = copy.deepcopy(FAMILIES[family][1])
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = settings[key] | value if nested else value
    return config_class(family)(**settings, architectures=[class_name(family)])


def config_class(family: str) -> type[PretrainedConfig]:
    """What transformers reads a config.json of the text model with."""
    found: type[PretrainedConfig] = getattr(
        transformers(), f"{FAMILIES[family][0]}{'Text' if family == 'qwen3_5_moe' else ''}Config"
    )
    return found


def class_name(family: str) -> str:
    """The class of transformers that generates."""
    return f"{FAMILIES[family][0]}For{'ConditionalGeneration' if family in ENCODER_DECODERS else 'CausalLM'}"


def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Norms and biases that are not neutral, and routers that are sure of their choice."""

    def normal(shape: torch.Size, scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    zero_centred = model.config.model_type.startswith(("qwen3_next", "qwen3_5"))
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            if name.endswith("A_log"):  # of states that remember some tokens
                value.copy_(normal(value.shape, 1.0) - 1.5)
            elif "correction_bias" in name or name.endswith("bias"):
                value.copy_(normal(value.shape, 0.3))
            elif value.dim() == 1:
                centre = 0 if zero_centred and not name.endswith(("linear_attn.norm.weight", "dt_bias")) else 1
                value.copy_(centre + normal(value.shape, 0.3))
            elif re.search(r"(gate|router\.layer|classifier)\.weight$", name):
                value.copy_(normal(value.shape, 0.4))
            else:
                value.copy_(normal(value.shape, 1.0 if re.search("embed_tokens|wte|shared", name) else 0.25))


def write(model: PreTrainedModel, folder: Path, layout: str = "published", shard: str | None = None) -> Path:
    """Save `model` in `folder`; `shard` is the largest size of one file."""
    if layout == "published":
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        tensors = {name: value.clone().contiguous() for name, value in model.state_dict().items() if name not in tied}
        save_file(tensors, folder / "model.safetensors")
    return folder


def prompt(length: int, seed: int = 1) -> list[int]:
    """Random ids."""
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

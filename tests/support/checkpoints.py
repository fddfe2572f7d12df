"""Tiny random checkpoints of every family, made by transformers: as published, in shards, or as a raw state dict."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
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
# Tokens that no head likes score alike, and then any of them may be chosen: many heads leave none of them.
_INDEXED = {"index_n_heads": 16, "index_head_dim": 12, "index_topk": 24}
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
    "afmoe": (
        "Afmoe",
        _BASE
        | {
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 16, "head_dim": 12, "intermediate_size": 40, "moe_intermediate_size": 16,
            "num_dense_layers": 1, "num_experts": 6, "num_experts_per_tok": 3, "num_shared_experts": 1,
            "route_scale": 2.0, "mup_enabled": True,
        },
    ),
    "laguna": (
        "Laguna",
        _BASE
        | {
            "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 16, "num_attention_heads_per_layer": [4, 6, 8], "head_dim": 8, "intermediate_size": 40,
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "num_experts": 6,
            "num_experts_per_tok": 3,
        },
    ),
    "llama4": (
        "Llama4",
        _BASE
        | {
            "num_hidden_layers": 4, "head_dim": 8, "intermediate_size": 24, "intermediate_size_mlp": 40,
            "num_local_experts": 5, "interleave_moe_layer_step": 2, "attention_chunk_size": 24, "floor_scale": 16,
            "no_rope_layer_interval": 3,
        },
    ),
    "phimoe": (
        "Phimoe",
        _BASE
        | {
            "intermediate_size": 24, "num_local_experts": 6, "attention_bias": True, "lm_head_bias": True,
            "router_jitter_noise": 0.2,
        },
    ),
    "cohere2_moe": (
        "Cohere2Moe",
        _BASE
        | {
            "num_hidden_layers": 4, "sliding_window_pattern": 2, "sliding_window": 16, "head_dim": 12,
            "intermediate_size": 24, "prefix_dense_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 3,
            "first_k_dense_replace": 1, "logit_scale": 0.5, "rms_norm_eps": 1e-6, "expert_selection_fn": "sigmoid",
            "norm_topk_prob": False,
        },
    ),
    "exaone_moe": (
        "ExaoneMoe",
        _BASE
        | {
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 16, "intermediate_size": 40, "moe_intermediate_size": 16, "num_experts": 8,
            "num_experts_per_tok": 3,
        },
    ),
    "mimo_v2_flash": (
        "MiMoV2Flash",
        _BASE
        | {
            "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 16, "head_dim": 12, "v_head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 40,
            "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3,
        },
    ),
    "mistral4": (
        "Mistral4",
        _BASE
        | _LATENT
        | {
            "q_lora_rank": 12, "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
            },
        },
    ),
    "step3p7": (
        "Step3p7",
        {
            "text_config": _BASE
            | {
                "num_hidden_layers": 4, "layer_types": ["full_attention", *["sliding_attention"] * 3],
                "sliding_window": 16, "num_sliding_attention_heads": 6, "head_dim": 8, "intermediate_size": 40,
                "moe_intermediate_size": 16, "share_expert_dim": 24, "n_routed_experts": 6, "num_experts_per_tok": 3,
                "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                "swiglu_limits": [None, 0.0, 7.0, 16.0], "swiglu_limits_shared": [0.0, None, 16.0, 7.0],
                "rope_theta": [5000.0, 10000.0, 10000.0, 10000.0], "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0],
            },
            "vision_config": {
                "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
            },
        },
    ),
    "mixtral": ("Mixtral", _BASE | {"intermediate_size": 24, "num_local_experts": 5}),
    "bailing_hybrid": (
        "BailingHybrid",
        _BASE
        | {key: value for key, value in _LATENT.items() if key != "n_routed_experts"}
        | {
            "num_hidden_layers": 4, "head_dim": 10, "num_local_experts": 8, "n_group": 4, "topk_group": 2,
            "layer_group_size": 2, "pad_token_id": None, "num_mtp_layers": 0,
            "kda_lower_bound": -1.0,  # transformers' sums of decays lose too many digits with the published one
        },
    ),
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
    "deepseek_v32": (
        "DeepseekV32",
        _BASE | _LATENT | _INDEXED | {"q_lora_rank": 12, "n_shared_experts": 1, "n_group": 4, "topk_group": 2},
    ),
    "glm_moe_dsa": (
        "GlmMoeDsa", _BASE | _LATENT | _INDEXED | {"q_lora_rank": 12, "n_shared_experts": 1, "num_hidden_layers": 3},
    ),
    "deepseek_v3": ("DeepseekV3", _BASE | _LATENT | {"q_lora_rank": 12, "n_group": 4, "topk_group": 2}),
    "gpt_oss": (
        "GptOss",
        _BASE | {"intermediate_size": 24, "num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 12,
                 "sliding_window": 16},
    ),
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
    "gemma4": (
        "Gemma4",
        _BASE
        | {
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 16, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
            "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 40.0,
            "enable_moe_block": True, "intermediate_size": 40, "num_experts": 6, "top_k_experts": 3,
            "moe_intermediate_size": 16,
        },
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
    "kimi_linear": (
        "KimiLinear",
        _BASE
        | {key: value for key, value in _LATENT.items() if key != "n_routed_experts"}
        | {
            "num_hidden_layers": 4, "linear_num_heads": 3, "linear_head_dim": 10, "num_local_experts": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            "pad_token_id": None,
        },
    ),
    "llama": ("Llama", _BASE | {"intermediate_size": 40}),
    "minimax": (
        "MiniMax",
        _BASE
        | {
            "num_hidden_layers": 4, "head_dim": 12, "intermediate_size": 24, "num_local_experts": 6,
            "num_experts_per_tok": 3, "block_size": 32, "full_attn_alpha_factor": 1.5, "full_attn_beta_factor": 0.8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            "linear_attn_alpha_factor": 0.7, "linear_attn_beta_factor": 1.2, "mlp_alpha_factor": 2.5,
            "mlp_beta_factor": 0.9,
        },
    ),
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
# Whose configuration without "Text" describes more than the text model.
TEXT_CONFIGS = ("gemma4", "llama4", "qwen3_5_moe")
WRAPPED = ("step3p7",)  # which transformers has only behind a vision tower
DENSE = ("llama", "mistral")
DECODERS = tuple(family for family in FAMILIES if family not in ENCODER_DECODERS)
MIXTURES = tuple(family for family in DECODERS if family not in DENSE)
LAYOUTS = ("published", "fused")
FUSED = ("Gemma4", "Llama4")  # as published, so that the second layout is one tensor for each expert


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
    return configuration_class(family)(**settings, architectures=[class_name(family)])


def configuration_class(family: str) -> type[PretrainedConfig]:
    """Of its text model alone."""
    found: type[PretrainedConfig] = getattr(
        transformers(), f"{FAMILIES[family][0]}{'Text' if family in TEXT_CONFIGS else ''}Config"
    )
    return found


def class_name(family: str) -> str:
    """The class of transformers that generates."""
    conditional = family in (*ENCODER_DECODERS, *WRAPPED)
    return f"{FAMILIES[family][0]}For{'ConditionalGeneration' if conditional else 'CausalLM'}"


def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Norms and biases that are not neutral, and routers that are sure of their choice."""

    def normal(shape: torch.Size, scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    zero_centred = model.config.model_type.startswith(("qwen3_next", "qwen3_5"))
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name or name.endswith(("embed_scale", "slope_rate", "_decay")):
                continue
            if name.endswith("A_log"):  # of states that remember some tokens
                value.copy_(normal(value.shape, 1.0) - 1.5)
            elif name.endswith("gate_up_proj_bias"):
                value.copy_(normal(value.shape, 5.0))  # beyond the limits of the activation
            elif "correction_bias" in name or name.endswith("bias"):
                value.copy_(normal(value.shape, 0.3))
            elif value.dim() == 1:
                centre = 0 if zero_centred and not name.endswith(("linear_attn.norm.weight", "dt_bias")) else 1
                value.copy_(centre + normal(value.shape, 0.3))
            elif re.search(r"(gate|mlp\.router|router\.layer|classifier)\.weight$", name):
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
        tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
        tensors = {name: value.clone().contiguous() for name, value in model.state_dict().items() if name not in tied}
        if type(model).__name__.startswith(FUSED):
            tensors = dict(pair for each in tensors.items() for pair in _taken_apart(*each))
        save_file(tensors, folder / "model.safetensors")
    return folder


def _taken_apart(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Each expert's matrices, of a tensor that holds all of them."""
    prefix, _, part = name.rpartition(".")
    if part not in ("gate_up_proj", "down_proj"):
        yield name, value
        return
    for expert, matrix in enumerate(value):
        matrix = matrix.T if name.startswith("model.layers") and ".feed_forward." in name else matrix
        pieces = matrix.chunk(2) if part == "gate_up_proj" else [matrix]
        for kind, piece in zip(["gate_proj", "up_proj"] if part == "gate_up_proj" else [part], pieces, strict=True):
            yield f"{prefix}.{expert}.{kind}.weight", piece.contiguous()


def prompt(length: int, seed: int = 1) -> list[int]:
    """Random ids."""
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

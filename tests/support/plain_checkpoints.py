"""Tiny random checkpoints of families that transformers lacks, as published, with their plain references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from moecli.model.families import families, read_spec
from moecli.model.spec import GroupedQuery
from moecli.model.tensors import Tensor, dense_tensors, expert_shapes
from tests.support.checkpoints import VOCABULARY
from tests.support.plain_decoder import PlainArctic, PlainDecoder, PlainLing

_BASE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts_per_tok": 3,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
_ROUTED = {"moe_intermediate_size": 16, "first_k_dense_replace": 1}
FAMILIES: dict[str, tuple[type[PlainDecoder], dict[str, Any]]] = {
    "deepseek": (
        PlainDecoder,
        _BASE | _ROUTED
        | {"architectures": ["DeepseekForCausalLM"], "n_routed_experts": 6, "n_shared_experts": 2},
    ),
    "arctic": (
        PlainArctic,
        _BASE
        | {
            "architectures": ["ArcticForCausalLM"], "num_local_experts": 6, "moe_layer_frequency": 1,
            "parallel_attn_mlp_res": True,
        },
    ),
    "bailing_moe": (
        PlainLing,
        _BASE | _ROUTED
        | {
            "architectures": ["BailingMoeV2ForCausalLM"], "num_experts": 8, "num_shared_experts": 1, "head_dim": 12,
            "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "partial_rotary_factor": 0.5,
        },
    ),
}  # fmt: skip


def make(family: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A configuration and random weights as published; each bias, norm and router is to be felt."""
    config = FAMILIES[family][1] | changes
    spec, names = read_spec(config), families()[family].layouts[0]
    generator = torch.Generator().manual_seed(len(json.dumps(changes)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (0.25 if len(shape) > 1 else 0.3)

    def rows(tensor: Tensor, parts: int) -> list[int]:
        """Of each of the stored tensors that are stacked to one."""
        attention = spec.layers[0].attention
        if tensor.role.startswith("qkv") and parts == 3 and isinstance(attention, GroupedQuery):
            return [attention.query_width, attention.kv_width, attention.value_width]
        return [tensor.shape[0] // parts] * parts

    tensors = {}
    for tensor in dense_tensors(spec):
        stored = [name.format(layer=tensor.layer) for name in names.dense[tensor.role]]
        value = normal(*tensor.shape) * {"embedding": 4.0, "router": 1.6}.get(tensor.role, 1.0)
        value = 1 + value if tensor.role.endswith("norm") else value
        tensors.update(zip(stored, map(torch.clone, value.split(rows(tensor, len(stored)))), strict=True))
    assert names.experts is not None
    for layer, mixture in spec.mixtures:
        for expert in range(mixture.router.experts):
            for matrix, shape in expert_shapes(spec.hidden_size, mixture.expert).items():
                name = getattr(names.experts, matrix).name.format(layer=layer, expert=expert)
                tensors[name] = normal(*shape)
    return config, tensors


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder

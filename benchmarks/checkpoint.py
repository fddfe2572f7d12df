"""Write a random checkpoint of a real shape, streaming, in the ordinary Hub layout.

python benchmarks/checkpoint.py small /tmp/small      (shapes: see SHAPES)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import moecli
from moecli import families
from moecli.families import Layout, Piece
from moecli.spec import GroupedQuery, ModelSpec
from moecli.tensors import EXPERT_MATRICES, dense_tensors, expert_shapes

_OLMOE = {
    "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024,
    "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
    "vocab_size": 50304, "max_position_embeddings": 16384, "dtype": "bfloat16",
}  # fmt: skip
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "num_hidden_layers": 4, "vocab_size": 32000, "max_position_embeddings": 32768, "dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "olmoe": _OLMOE,
    "mixtral-4-layers": _MIXTRAL,
    # 1.2 GB, little arithmetic per token: for memory measurements
    "small": _MIXTRAL
    | {
        "hidden_size": 1024, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_local_experts": 64, "vocab_size": 4096,
    },
}  # fmt: skip


def write(shape: str, folder: Path, seed: int = 0) -> None:
    """One shard per layer; router weights are large enough that routing varies with the token."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tiny = Path(moecli.__file__).parent / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    family = families.find(config)
    spec = family.read(config)
    torch.manual_seed(seed)
    index: dict[str, str] = {}
    for layer in (None, *range(len(spec.layers))):
        tensors = _tensors(spec, family.layouts[0], layer)
        file = f"model-{'outside' if layer is None else f'{layer:03d}'}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _tensors(spec: ModelSpec, layout: Layout, layer: int | None) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for tensor in dense_tensors(spec):
        if tensor.layer != layer:
            continue
        attention = spec.layers[0].attention
        rows = [tensor.shape[0]]
        if tensor.role == "qkv" and isinstance(attention, GroupedQuery):
            rows = [attention.query_width, attention.kv_width, attention.kv_width]
        for name, count in zip(layout.dense[tensor.role], rows, strict=True):
            found[name.format(layer=layer)] = _random((count, *tensor.shape[1:]), tensor.role)
    mixtures = dict(spec.mixtures)
    if layer in mixtures:
        mixture = mixtures[layer]
        shapes = expert_shapes(spec.hidden_size, mixture.expert)
        for expert in range(mixture.router.experts):
            for matrix in EXPERT_MATRICES:
                piece: Piece = getattr(layout.experts, matrix)
                found[piece.name.format(layer=layer, expert=expert)] = _random(shapes[matrix], matrix)
    return found


def _random(shape: tuple[int, ...], role: str) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    if role == "embedding":  # as large as what the layers add, or every token would look alike to the routers
        return torch.randn(shape, dtype=torch.bfloat16)
    scale = 2.0 if role == "router" else 1.0
    return torch.randn(shape, dtype=torch.bfloat16).mul_(scale * shape[-1] ** -0.5)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))

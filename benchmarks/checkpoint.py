"""Random weights of a real shape, streamed: a checkpoint in the ordinary Hub layout, or a packed store without one.

python -m benchmarks.checkpoint small /tmp/small                (shapes: see SHAPES)
python -m benchmarks.checkpoint qwen3-30b-a3b /tmp/qwen3-q4 q4  (needs no room for the 61 GB of its bf16 checkpoint)
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

import moecli
from moecli.checkpoint.safetensors import header_tensors
from moecli.checkpoint.stored import StoredTensor
from moecli.model import families
from moecli.model.families import Layout, NamedSlice
from moecli.model.spec import GroupedQuery, ModelSpec
from moecli.model.tensors import EXPERT_MATRICES, Tensor, dense_tensors, expert_shapes
from moecli.store.incremental import packing_shards
from moecli.store.layout import choose_layout
from moecli.store.manifest import Origin
from moecli.store.source import announced, header_fingerprint

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
_MISTRAL = {name: value for name, value in _MIXTRAL.items() if "experts" not in name} | {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None,
}  # fmt: skip
_DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_attention_heads": 16, "num_key_value_heads": 16,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_hidden_layers": 27, "vocab_size": 102400,
    "max_position_embeddings": 163840, "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707,
    },
    "dtype": "bfloat16",
}  # fmt: skip
_QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "num_hidden_layers": 48, "vocab_size": 151936, "max_position_embeddings": 40960,
    "rope_theta": 1000000.0, "dtype": "bfloat16",
}  # fmt: skip
_DBRX = {
    "architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 2,
    "max_seq_len": 32768, "vocab_size": 100352, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
}  # fmt: skip
_GROK_1 = {
    "architectures": ["Grok1ModelForCausalLM"], "model_type": "grok-1", "hidden_size": 6144,
    "intermediate_size": 32768, "num_hidden_layers": 1, "num_attention_heads": 48, "num_key_value_heads": 8,
    "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 131072, "max_position_embeddings": 8192,
    "attn_output_multiplier": 0.08838834764831845, "embedding_multiplier_scale": 78.38367176906169,
    "output_multiplier_scale": 0.5773502691896257, "max_attn_value": 30.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN3_5_35B_A3B = {
    "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text", "hidden_size": 2048,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "num_experts": 256, "num_experts_per_tok": 8, "num_hidden_layers": 40,
    "full_attention_interval": 4, "vocab_size": 248320, "max_position_embeddings": 262144, "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
}  # fmt: skip
_GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32,
    "num_experts_per_tok": 4, "sliding_window": 128, "max_position_embeddings": 131072, "dtype": "bfloat16",
    "tie_word_embeddings": False, "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "olmoe": _OLMOE,
    "olmoe-4-layers": _OLMOE | {"num_hidden_layers": 4},
    "mixtral-4-layers": _MIXTRAL,
    "mixtral-2-layers": _MIXTRAL | {"num_hidden_layers": 2},
    "mistral-4-layers": _MISTRAL,  # its dense peer: as if one expert were always on
    "deepseek-v2-lite": _DEEPSEEK_V2_LITE,
    "deepseek-v2-lite-2-layers": _DEEPSEEK_V2_LITE | {"num_hidden_layers": 2},
    "qwen3-30b-a3b": _QWEN3_30B_A3B,
    "qwen3-30b-a3b-12-layers": _QWEN3_30B_A3B | {"num_hidden_layers": 12},
    "qwen3.5-35b-a3b-8-layers": _QWEN3_5_35B_A3B | {"num_hidden_layers": 8},
    # 1.2 GB with states: for memory measurements
    "qwen3.5-small": _QWEN3_5_35B_A3B | {"num_hidden_layers": 4, "num_experts": 32, "vocab_size": 32000},
    "dbrx-2-layers": _DBRX,
    "grok-1-1-layer": _GROK_1,
    # 1.1 GB in mxfp4
    "gpt-oss-2-layers": _GPT_OSS | {"num_hidden_layers": 2, "vocab_size": 32000},
    # 1.2 GB, little arithmetic per token: for memory measurements
    "small": _MIXTRAL
    | {
        "hidden_size": 1024, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_local_experts": 64, "vocab_size": 4096,
    },
}  # fmt: skip
INDEX = "model.safetensors.index.json"  # written last: a checkpoint that has it is whole
_OUTSIDE = "model-outside.safetensors"

_BYTES = ("blocks", "exponents")  # roles of what is mxfp4
Shard = dict[str, tuple[str, tuple[int, ...]]]  # by name: role and shape of each tensor, in the order they lie


def read_spec(shape: str) -> ModelSpec:
    """What the configuration of a shape says."""
    return families.read_spec(SHAPES[shape])


def write(shape: str, folder: Path, seed: int = 0) -> None:
    """One shard per layer; router weights are large enough that routing varies with the token."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_texts(shape, folder)
    shards = _shards(shape)
    for name in shards:
        _write_shard(folder / name, shards[name], f"{name} {seed}")
    index = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def pack(shape: str, target: Path, dtype: str = "q4", seed: int = 0) -> None:
    """The store that packing the same checkpoint gives; no shard lies on disk longer than it takes to pack it."""
    shards = _shards(shape)
    stored = [tensor for name, tensors in shards.items() for tensor in _announce(name, tensors)]
    weights = announced(shape, SHAPES[shape], lambda: {tensor.name: tensor for tensor in stored})
    origin = Origin(shape, None, None, None, header_fingerprint(stored))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch)
        _write_texts(shape, folder)
        with packing_shards(target, weights, choose_layout(weights, dtype), origin) as packer:
            for name in packer.pending:
                path = folder / name
                _write_shard(path, shards[name], f"{name} {seed}")
                packer.take(name, path)
                path.unlink()
            packer.finish(folder)


def _write_texts(shape: str, folder: Path) -> None:
    """The configuration, and a tokenizer that any vocabulary can hold: the built-in model's."""
    (folder / "config.json").write_text(json.dumps(SHAPES[shape], indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(moecli.__file__).parent / "tiny" / name, folder)


def _shards(shape: str) -> dict[str, Shard]:
    """What each file holds: one per layer, and one of what is outside them."""
    spec, layout = read_spec(shape), families.find(SHAPES[shape]).layouts[0]
    shards: dict[str, Shard] = {_OUTSIDE: {}}
    shards |= {f"model-{layer:03d}.safetensors": {} for layer in range(len(spec.layers))}
    files = dict(enumerate(list(shards)[1:]))
    for tensor in dense_tensors(spec):
        shards[_OUTSIDE if tensor.layer is None else files[tensor.layer]] |= _dense(spec, layout, tensor)
    for layer, mixture in spec.mixtures:
        shapes = expert_shapes(spec.hidden_size, mixture.expert)
        if layout.biases is not None:
            shards[files[layer]] |= _mxfp4(layout, layer, mixture.router.experts, shapes)
            continue
        for expert in range(mixture.router.experts):
            for matrix in EXPERT_MATRICES:
                named: NamedSlice = getattr(layout.experts, matrix)
                rows, columns = reversed(shapes[matrix]) if named.transposed else shapes[matrix]
                rows *= mixture.router.experts if named.stacked else 1
                shards[files[layer]][named.name.format(layer=layer, expert=expert)] = (matrix, (rows, columns))
    return shards


def _mxfp4(
    layout: Layout, layer: int, experts: int, shapes: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Experts as gpt-oss stores them, gate and up together."""
    assert layout.experts is not None
    for matrix in ("up", "down"):
        (outputs, inputs), named = shapes[matrix], getattr(layout.experts, matrix)
        outputs *= 1 + named.interleaved
        for ending, role, numbers in (("blocks", "blocks", (16,)), ("scales", "exponents", ())):
            name = f"{named.name.format(layer=layer)}_{ending}"
            yield name, (role, (experts, outputs, inputs // 32, *numbers))


def _dense(spec: ModelSpec, layout: Layout, tensor: Tensor) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """The stored tensors that, stacked by rows, are `tensor`."""
    if tensor.role.startswith("experts_"):
        named = getattr(layout.biases, tensor.role.split("_")[1])
        width = tensor.shape[1] * (1 + named.interleaved)
        yield named.name.format(layer=tensor.layer), (tensor.role, (tensor.shape[0], width))
        return
    names = layout.dense[tensor.role]
    rows = [tensor.shape[0] // len(names)] * len(names)
    if tensor.role == "mixer_in" and len(names) == 2:  # what is convolved, and the gate
        mixer = spec.layers[tensor.layer or 0].recurrent
        assert mixer is not None
        rows = [mixer.channels, mixer.inner]
    if tensor.role in ("qkv", "qkv_bias") and tensor.layer is not None and len(names) == 3:
        attention = spec.layers[tensor.layer].attention
        assert isinstance(attention, GroupedQuery)
        rows = [attention.query_width, attention.kv_width, attention.value_width]
    for name, count in zip(names, rows, strict=True):
        if (turns := layout.interleaved.get(name)) and tensor.layer is not None:
            each = turns.rows(spec.layers[tensor.layer])
            mine = sum(size for size, role in zip(each, turns.roles, strict=True) if role == tensor.role)
            count = count * sum(each) // mine  # what it shares them with lies there too
        yield name.format(layer=tensor.layer), (tensor.role, (count, *tensor.shape[1:]))


def _announce(name: str, shard: Shard) -> list[StoredTensor]:
    """The tensors of a file that is not there yet."""
    header = _header(shard)
    size = len(header) + sum(_size(role, shape) for role, shape in shard.values())
    return list(header_tensors(Path(name), header[8:], size).values())


def _write_shard(path: Path, shard: Shard, seed: str) -> None:
    """A safetensors file of random bf16, the same for the same `seed`."""
    generator = torch.Generator().manual_seed(crc32(seed.encode()))
    with path.open("wb") as file:
        file.write(_header(shard))
        for role, shape in shard.values():
            file.write(_random(role, shape, generator).view(torch.uint8).numpy().data)


def _header(shard: Shard) -> bytes:
    """With the format that transformers asks for, padded so that numbers are aligned."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (role, shape) in shard.items():
        start, end = end, end + _size(role, shape)
        kind = "U8" if role in _BYTES else "BF16"
        described[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(described).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


def _size(role: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * (1 if role in _BYTES else 2)


def _random(role: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if role == "exponents":
        return torch.full(shape, 119, dtype=torch.uint8)  # weights of about 1/80
    if role == "blocks":
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    numbers = torch.randn(shape, generator=generator)
    if role != "embedding":  # as large as what the layers add, or every token would look alike to the routers
        numbers *= (2.0 if role == "router" else 1.0) * shape[-1] ** -0.5
    return numbers.bfloat16()


if __name__ == "__main__":
    shape, target, *dtype = sys.argv[1:]
    if dtype:
        pack(shape, Path(target), dtype[0])
    else:
        write(shape, Path(target))

"""Safetensors files that are all header: true names and shapes, and holes where gigabytes of weights would be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from moecli.checkpoint.stored import ITEM_SIZES

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape


def header(tensors: Tensors) -> tuple[bytes, int]:
    """The first bytes of a file with these tensors, and the size of the whole file."""
    entries, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def write(folder: Path, config: object, *shards: Tensors) -> Path:
    """A checkpoint folder of sparse files; several shards get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = shard_names(len(shards))
    for name, tensors in zip(names, shards, strict=True):
        start, size = header(tensors)
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index(shards)))
    return folder


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def index(shards: tuple[Tensors, ...]) -> dict[str, object]:
    names = shard_names(len(shards))
    weight_map = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
    return {"metadata": {}, "weight_map": weight_map}


def split(tensors: Tensors, count: int) -> tuple[Tensors, ...]:
    """The tensors dealt into `count` shards."""
    items = list(tensors.items())
    return tuple(dict(items[number::count]) for number in range(count))


def mixtral(layers: int = 32, width: int = 4096, expert: int = 14336, experts: int = 8) -> dict[str, tuple[int, ...]]:
    """Every matrix and vector of Mixtral 8x7B (or a smaller one with 128 numbers a head and a vocabulary of 32000)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, rows in {"q": width, "k": width // 4, "v": width // 4, "o": width}.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, width)
        shapes[f"{at}block_sparse_moe.gate.weight"] = (experts, width)
        for number in range(experts):
            for name, shape in {"w1": (expert, width), "w2": (width, expert), "w3": (expert, width)}.items():
                shapes[f"{at}block_sparse_moe.experts.{number}.{name}.weight"] = shape
        shapes |= {f"{at}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (32000, width)}


def granite(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Every matrix and vector of a Granite-MoE with this configuration."""
    layers, width, inner, experts, heads, kv_heads, words = (
        int(str(config[key]))
        for key in (
            "num_hidden_layers", "hidden_size", "intermediate_size", "num_local_experts", "num_attention_heads",
            "num_key_value_heads", "vocab_size",
        )
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (width, width) for name in ("q", "o")}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (width // heads * kv_heads, width) for name in ("k", "v")}
        shapes |= {f"{at}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{at}block_sparse_moe.router.layer.weight"] = (experts, width)
        shapes[f"{at}block_sparse_moe.input_linear.weight"] = (experts, 2 * inner, width)
        shapes[f"{at}block_sparse_moe.output_linear.weight"] = (experts, width, inner)
    return shapes


def plain(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (dtype, shape) for name, shape in shapes.items()}


def packed(shapes: Mapping[str, tuple[int, ...]], packing: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The same model as a quantiser writes it: tables, head and norms stay as they are."""
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and name not in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors.update(_pack(name, *shape, packing))
        else:
            tensors[name] = ("BF16", shape)
    return tensors


def _pack(name: str, rows: int, columns: int, packing: str) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    module, numbers, groups = name.removesuffix(".weight"), rows * columns, -(-columns // 128)
    if packing == "bnb4":
        blocks = numbers // 64
        yield name, ("U8", (numbers // 2, 1))
        yield f"{name}.absmax", ("U8", (blocks,))
        yield f"{name}.nested_absmax", ("F32", (-(-blocks // 256),))
        yield f"{name}.quant_map", ("F32", (16,))
        yield f"{name}.nested_quant_map", ("F32", (256,))
        yield f"{name}.quant_state.bitsandbytes__nf4", ("U8", (94,))
    elif packing == "bnb8":
        yield name, ("I8", (rows, columns))
        yield f"{module}.SCB", ("F32", (rows,))
        yield f"{module}.weight_format", ("U8", ())
    elif packing == "gptq":
        yield f"{module}.qweight", ("I32", (columns // 8, rows))
        yield f"{module}.qzeros", ("I32", (groups, rows // 8))
        yield f"{module}.scales", ("F16", (groups, rows))
        yield f"{module}.g_idx", ("I32", (columns,))
    elif packing == "awq":
        yield f"{module}.qweight", ("I32", (columns, rows // 8))
        yield f"{module}.qzeros", ("I32", (groups, rows // 8))
        yield f"{module}.scales", ("F16", (groups, rows))
    elif packing == "fp8":
        yield name, ("F8_E4M3", (rows, columns))
        yield f"{name}_scale_inv", ("F32", (-(-rows // 128), groups))
    elif packing == "nvfp4":
        yield name, ("U8", (rows, columns // 2))
        yield f"{name}_scale", ("F8_E4M3", (rows, columns // 16))
        yield f"{name}_scale_2", ("F32", ())
    elif packing == "fp4":  # which nobody says how to read
        yield name, ("U8", (rows, columns // 2))
        yield f"{name}_scale", ("F8_E4M3", (rows, columns // 16))
    elif packing == "compressed":
        yield f"{name}_packed", ("I32", (rows, columns // 8))
        yield f"{name}_scale", ("BF16", (rows, columns // 32))
        yield f"{name}_shape", ("I32", (2,))


def gpt_oss() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of gpt-oss-20b as published: experts in MXFP4, the rest in bfloat16."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (201088, 2880))}
    for layer in range(24):
        at = f"model.layers.{layer}."
        shapes: dict[str, tuple[int, ...]] = {"self_attn.sinks": (64,), "mlp.router.weight": (32, 2880)}
        shapes |= {"mlp.router.bias": (32,), "mlp.experts.gate_up_proj_bias": (32, 5760)}
        shapes |= {"mlp.experts.down_proj_bias": (32, 2880)}
        for name, rows, columns in (("q", 4096, 2880), ("k", 512, 2880), ("v", 512, 2880), ("o", 2880, 4096)):
            shapes |= {f"self_attn.{name}_proj.weight": (rows, columns), f"self_attn.{name}_proj.bias": (rows,)}
        shapes |= {f"{norm}.weight": (2880,) for norm in ("input_layernorm", "post_attention_layernorm")}
        tensors |= {f"{at}{name}": ("BF16", shape) for name, shape in shapes.items()}
        for name, rows in (("gate_up_proj", 5760), ("down_proj", 2880)):
            tensors[f"{at}mlp.experts.{name}_blocks"] = ("U8", (32, rows, 90, 16))
            tensors[f"{at}mlp.experts.{name}_scales"] = ("U8", (32, rows, 90))
    return tensors | {"model.norm.weight": ("BF16", (2880,)), "lm_head.weight": ("BF16", (201088, 2880))}

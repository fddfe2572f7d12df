"""What llama.cpp's converters did to single tensors, undone as these are read: their order, shape and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecli.checkpoint.encodings.ggml import TYPES, Change, Ggml, KeysAndValues, Pairs, Tiles
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError, printable

# Architectures whose queries and keys converters bring into the order of llama.cpp's rotary embedding.
_TURNED = ("llama", "deepseek", "granitemoe", "granitehybrid", "nemotron_h_moe", "arctic")
_QWEN = ("qwen3next", "qwen35moe")  # whose norms, but for those of mixers, are written plus one


def as_in_models(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same with each as it was in the model. CheckpointError where metadata and shapes do not allow it."""
    found = dict(tensors)
    architecture = metadata.get("general.architecture")
    for name, stored in tensors.items():
        found[name] = _reshaped(name, stored)
        if name.endswith(".ssm_a"):
            found[name] = _changed(found[name], Change.MINUS_EXP)
        elif architecture in _QWEN and name.endswith("norm.weight") and not name.endswith("ssm_norm.weight"):
            found[name] = _changed(found[name], Change.PLUS_ONE)
    if architecture in _TURNED:
        heads = _one(metadata.get(f"{architecture}.attention.head_count"))
        kv_heads = _one(metadata.get(f"{architecture}.attention.head_count_kv", heads))
        for name, stored in tensors.items():
            if match := re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name):
                found[name] = _rotated(stored, heads if match[1] == "q" else kv_heads)
    if architecture == "qwen35moe":
        found |= _grouped(metadata, found)
    for name, keys in tensors.items():
        if match := re.fullmatch(r"(blk\.\d+\.attn_)k_b(\.weight)", name):
            values = tensors.get(f"{match[1]}v_b{match[2]}")
            if values is None or len(keys.shape) != 3 or len(values.shape) != 3:
                raise CheckpointError(f"{printable(name, 80)} has no attn_v_b of its kind beside it")
            found[f"{match[1]}kv_b{match[2]}"] = _joined(keys, values)
            del found[name], found[values.name]
    return found


def _reshaped(name: str, stored: StoredTensor) -> StoredTensor:
    """Axes of one that were added or left out."""
    shape = stored.shape
    if name.endswith(".ffn_gate_inp_shexp.weight") and len(shape) == 1:
        shape = (1, *shape)
    elif name.endswith((".shortconv.conv.weight", ".ssm_conv1d.weight")) and len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    elif name.endswith((".ssm_a", ".ssm_d")) and len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]
    elif name.endswith(".ssm_norm.weight") and len(shape) == 2:
        shape = (shape[0] * shape[1],)
    if shape == stored.shape or stored.encoding is None:
        return replace(stored, shape=shape)
    kind, codes = _codes(replace(stored, shape=shape))  # of a vector one row
    return replace(stored, shape=shape, encoding=Ggml((codes,), TYPES[kind].format, kind))


def _one(value: Any) -> Any:
    """What a list says of every layer alike, but for those without any."""
    if not isinstance(value, list):
        return value
    some = [each for each in value if each != 0]
    return some[0] if some and all(each == some[0] for each in some) else value


def _changed(stored: StoredTensor, change: Change) -> StoredTensor:
    kind, codes = _codes(stored)
    return replace(stored, encoding=Ggml((codes,), "fp32", kind, change=change))


def _rotated(stored: StoredTensor, heads: Any) -> StoredTensor:
    rows = stored.shape[0]
    blocks = len(stored.shape) == 1 and stored.encoding is not None
    if type(heads) is not int or heads <= 0 or len(stored.shape) > 2 or rows % (2 * heads) or blocks:
        raise CheckpointError(f"{stored.name} of {list(stored.shape)} does not have {printable(str(heads), 20)} heads")
    kind, codes = _codes(stored if len(stored.shape) == 2 else replace(stored, shape=(rows, 1)))
    return replace(stored, encoding=Ggml((codes,), TYPES[kind].format, kind, order=Pairs(rows // heads)))


def _grouped(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Qwen3.5's mixers, whose value heads lie as the first of each key head, the second of each, and so on."""
    sizes: list[Any] = [
        metadata.get(f"qwen35moe.ssm.{key}") for key in ("group_count", "time_step_rank", "inner_size", "state_size")
    ]
    if any(type(each) is not int or each <= 0 for each in sizes):
        raise CheckpointError("the GGUF file does not say how large its mixers are")
    groups, heads, inner, state = sizes
    if heads % groups or inner % heads:
        raise CheckpointError(f"the GGUF file has {groups} key heads, {heads} value heads and a width of {inner}")
    found: dict[str, StoredTensor] = {}
    value = Tiles(0, groups, heads // groups, inner // heads)
    single, beside = replace(value, height=1), replace(value, skipped=2 * groups * state)
    for name, stored in tensors.items():
        match = re.fullmatch(
            r"blk\.\d+\.(attn_qkv|attn_gate|ssm_(?:alpha|beta|a|dt|conv1d|out))(?:\.weight|\.bias|)", name
        )
        if match is None or heads == groups:
            continue
        order = {"attn_qkv": beside, "ssm_conv1d": beside, "attn_gate": value, "ssm_out": value}.get(match[1], single)
        axis = -1 if match[1] == "ssm_out" else 0
        if stored.shape[axis] != order.skipped + groups * order.times * order.height:
            raise CheckpointError(f"{name} is {list(stored.shape)}, which does not have {heads} value heads")
        kind, codes = _codes(stored)
        if match[1] == "ssm_conv1d":
            kind, codes = _codes(replace(stored, shape=(stored.shape[0], stored.shape[-1])))
        vector = len(stored.shape) == 1 or axis == -1
        change = stored.encoding.change if isinstance(stored.encoding, Ggml) else None
        format = "fp32" if change else TYPES[kind].format
        encoding = Ggml((codes,), format, kind, None if vector else order, order if vector else None, change)
        found[name] = replace(stored, encoding=encoding)
    return found


def _joined(keys: StoredTensor, values: StoredTensor) -> StoredTensor:
    (heads, rank, nope), (others, height, width) = keys.shape, values.shape
    if heads != others or rank != width:
        raise CheckpointError(f"{keys.name} is {list(keys.shape)} and {values.name} is {list(values.shape)}")
    (key_kind, key_codes), (value_kind, value_codes) = _codes(keys), _codes(values)
    encoding = KeysAndValues((key_codes, value_codes), "fp32", (key_kind, rank), (value_kind, height))
    return replace(keys, shape=(heads * (nope + height), rank), encoding=encoding)


def _codes(stored: StoredTensor) -> tuple[str, StoredTensor]:
    """The type of a tensor, and its bytes by rows."""
    rows = math.prod(stored.shape[:-1])
    if isinstance(stored.encoding, Ggml):
        codes = stored.encoding.parts[0]
        return stored.encoding.kind, replace(codes, shape=(rows, codes.size // rows if rows else 0))
    shape = (rows, stored.size // rows if rows else 0)
    return stored.dtype, StoredTensor(stored.name, "U8", shape, stored.path, stored.offset, stored.size)

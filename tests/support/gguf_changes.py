"""What llama.cpp's converter does to tensors of families with states or fused experts, before it writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = np.ndarray
# Names that the package's table lacks, by architecture: what stands behind the layer.
NAMES = {
    "laguna": {"self_attn.g_proj": "attn_gate", "post_attention_layernorm": "ffn_norm"},
}  # fmt: skip
LIKE = {"cohere2moe": "afmoe", "laguna": "afmoe"}  # architectures newer than the package, and one whose names they have


@dataclass(frozen=True)
class Piece:
    """Some of a tensor as one of the file: along `axis` its numbers at these `places`, turned to [out, in] before."""

    suffix: str  # of the file's name, behind that of the layer
    places: Array
    axis: int = 0
    turned: bool = False
    kind: str | None = None  # of its blocks, if always the same


def pieces(name: str, shape: tuple[int, ...], architecture: str, config: Mapping[str, Any]) -> list[Piece] | None:
    """How one is dealt out; None where it stays together and in order."""
    if match := re.fullmatch(r".*experts\.(gate_up|down)_proj(_bias)?", name):
        return _of_stack(match[1], bool(match[2]), shape, architecture)
    if re.fullmatch(r".*shared_mlp\.input_linear\.weight", name):
        half = shape[0] // 2
        names = ("ffn_gate_shexp.weight", "ffn_up_shexp.weight")
        return [Piece(each, np.arange(half) + at * half) for at, each in enumerate(names)]
    if "linear_attn." not in name:
        return None
    return _of_delta_net(name.partition("linear_attn.")[2], shape, architecture, config)


def _of_stack(matrix: str, bias: bool, shape: tuple[int, ...], architecture: str) -> list[Piece] | None:
    kind, ending = ("F32", "bias") if bias else (None, "weight")
    axis, turned = 1, not bias
    width = shape[-1]
    if matrix == "down":
        return [Piece(f"ffn_down_exps.{ending}", np.arange(width), axis, turned, kind)]
    gate, up = np.arange(width).reshape(-1, 2).T if architecture == "gpt-oss" else np.arange(width).reshape(2, -1)
    named = (("ffn_gate_exps", gate), ("ffn_up_exps", up))
    return [Piece(f"{each}.{ending}", places, axis, turned, kind) for each, places in named]


def _of_delta_net(
    name: str, shape: tuple[int, ...], architecture: str, config: Mapping[str, Any]
) -> list[Piece] | None:
    groups, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key, value, times = config["linear_key_head_dim"], config["linear_value_head_dim"], heads // groups
    if name == "in_proj_qkvz.weight":  # of each group q, k, its values, and their gates
        places = np.arange(shape[0]).reshape(groups, -1)
        ends = np.cumsum([key, key, times * value])
        *mixed, gates = (each.reshape(-1) for each in np.split(places, ends, 1))
        return [Piece("attn_qkv.weight", np.concatenate(mixed)), Piece("attn_gate.weight", gates)]
    if architecture != "qwen35moe":
        return None

    def tiled(skipped: int, height: int) -> Array:
        inside = np.arange(heads * height).reshape(groups, times, height).swapaxes(0, 1).reshape(-1)
        return np.concatenate([np.arange(skipped), inside + skipped])

    return {
        "in_proj_qkv.weight": [Piece("attn_qkv.weight", tiled(2 * groups * key, value))],
        "in_proj_z.weight": [Piece("attn_gate.weight", tiled(0, value))],
        "in_proj_b.weight": [Piece("ssm_beta.weight", tiled(0, 1))],
        "in_proj_a.weight": [Piece("ssm_alpha.weight", tiled(0, 1))],
        "A_log": [Piece("ssm_a", tiled(0, 1), kind="F32")],
        "dt_bias": [Piece("ssm_dt.bias", tiled(0, 1), kind="F32")],
        "conv1d.weight": [Piece("ssm_conv1d.weight", tiled(2 * groups * key, value), kind="F32")],
        "out_proj.weight": [Piece("ssm_out.weight", tiled(0, value), axis=1)],
    }.get(name)


def written(name: str, numbers: Array, architecture: str, config: Mapping[str, Any]) -> Array:
    """Numbers and axes as they are written: decays as negative numbers, Qwen's norms plus one, Mamba-2's by group."""
    if name.endswith("A_log"):
        numbers = (-torch.exp(torch.from_numpy(numbers))).numpy()
    if _is_more(name, architecture):
        numbers = numbers + np.float32(1)
    if re.search(r"conv1d\.weight|conv\.conv\.weight", name):
        numbers = numbers[:, 0]
    mamba2 = architecture in ("granitehybrid", "nemotron_h_moe")
    if mamba2 and name.endswith(("A_log", ".D")):
        numbers = numbers[:, None]
    if mamba2 and name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        return numbers.reshape(config["mamba_n_groups" if architecture == "granitehybrid" else "n_groups"], -1)
    return numbers


def read_back(name: str, numbers: Array, architecture: str) -> Array:
    """What `written` stands for, which is not to the bit what was given."""
    if name.endswith("A_log"):
        return torch.log(-torch.from_numpy(numbers)).numpy()
    return numbers - np.float32(1) if _is_more(name, architecture) else numbers


def _is_more(name: str, architecture: str) -> bool:
    qwen = architecture in ("qwen3next", "qwen35moe")
    return qwen and name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")

"""Quantised checkpoints made by code: random codes, and what the published rule of each encoding makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

from tests.support import checkpoints

Tensors = dict[str, torch.Tensor]
_LINEAR = re.compile(r"(.*(?:_proj|_proj_with_mqa|\.w[123]))\.weight")


@dataclass(frozen=True)
class Encoded:
    """One checkpoint as it is published, and the same with plain weights."""

    stored: Tensors
    plain: Tensors
    config: dict[str, Any]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Both, in two folders."""
        scheme = {"quantization_config": self.config.pop("quantization_config", None)}
        for name, tensors, more in (("stored", self.stored, scheme), ("plain", self.plain, {})):
            (folder / name).mkdir(parents=True)
            save_file({key: each.contiguous() for key, each in tensors.items()}, folder / name / "model.safetensors")
            (folder / name / "config.json").write_text(json.dumps(self.config | more))
        return folder / "stored", folder / "plain"


@dataclass(frozen=True)
class Case:
    """An encoding: how a matrix [out, in] becomes tensors by the ending of their names, and then numbers again."""

    encode: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
    scheme: Mapping[str, Any]
    name: str  # as screens have it
    family: str = "mixtral"
    changes: Mapping[str, Any] = field(default_factory=lambda: {"hidden_size": 64, "intermediate_size": 96})
    only: str = ""  # of the names of its matrices
    fused: bool = False
    format: str = "bfloat16"  # that the model is meant for

    def make(self) -> Encoded:
        config, tensors = _model(self.family, json.dumps(self.changes, sort_keys=True), self.fused)
        torch.manual_seed(0)
        stored: Tensors = {}
        plain: Tensors = {}
        for name, each in tensors.items():
            each = each.to(getattr(torch, self.format))
            match = re.fullmatch(r"(.*experts\.(?:gate_up|down)_proj)", name) if self.fused else _LINEAR.fullmatch(name)
            if match is None or self.only not in name:
                stored[name] = plain[name] = each
                continue
            parts, plain[name] = self.encode(each.float())
            stored |= {match[1] + ending: part for ending, part in parts.items()}
        dtypes = {"dtype": self.format, "torch_dtype": self.format}
        return Encoded(stored, plain, config | dtypes | {"quantization_config": dict(self.scheme)})


@cache
def _model(family: str, changes: str, fused: bool) -> tuple[dict[str, Any], Tensors]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        layout = "fused" if fused else "published"
        path = checkpoints.write(checkpoints.make(family, **json.loads(changes)), Path(folder), layout)
        return json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")


def fp8(tall: int, wide: int, ending: str = "_scale_inv", flat: bool = False) -> Any:
    """e4m3 with a scale for `tall` rows and `wide` columns; 0: all of them. `flat`: scales have no second axis."""

    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        *_, rows, columns = weights.shape
        height, width = tall or rows, wide or columns
        scales = 0.001 + 0.01 * torch.rand(*weights.shape[:-2], -(-rows // height), -(-columns // width))
        if ending == "_scale":
            scales = scales.bfloat16()
        spread = scales.float().repeat_interleave(height, -2)[..., :rows, :].repeat_interleave(width, -1)[..., :columns]
        codes = (weights / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        word = "" if weights.dim() == 3 else ".weight"
        found = {word: codes, f"{word}{ending}": scales.view(-1) if flat else scales}
        if ending == "_scale":
            found[".input_scale"] = torch.ones(())
        return found, (codes.float() * spread).bfloat16()

    return encode


def _nibbles(numbers: torch.Tensor, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """Numbers of a row in words of 32 bits: the n-th of a word at the n-th place, or at `places[n]`."""
    each = 32 // bits
    dealt = numbers.to(torch.int64).view(*numbers.shape[:-1], -1, each)
    shifts = bits * torch.tensor(places or tuple(range(each)))
    words = (dealt << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _grid(weights: torch.Tensor, group: torch.Tensor, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Codes [out, in], zero points and scales [out, groups] of made-up quality, and the numbers that they stand for."""
    groups = int(group.max()) + 1
    scales = (0.01 + 0.05 * torch.rand(len(weights), groups)).to(dtype)
    zeros = torch.randint(1, 2**bits, (len(weights), groups))
    codes = ((weights / scales.float()[:, group]).round().long() + zeros[:, group]).clamp(0, 2**bits - 1)
    return codes, zeros, scales, (codes - zeros[:, group]).to(dtype) * scales[:, group]


def gptq(bits: int, group: int, less: int = 1, shuffled: bool = False, dtype: torch.dtype = torch.float16) -> Any:
    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs = weights.shape[1]
        of = torch.arange(inputs) // group
        of = of[torch.randperm(inputs)] if shuffled else of
        codes, zeros, scales, numbers = _grid(weights, of, bits, dtype)
        found = {
            ".qweight": _nibbles(codes, bits).T, ".qzeros": _nibbles((zeros - less).T, bits), ".scales": scales.T,
        }  # fmt: skip
        return found | ({".g_idx": of.to(torch.int32)} if shuffled else {}), numbers

    return encode


def awq(group: int) -> Any:
    order = (0, 4, 1, 5, 2, 6, 3, 7)

    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, zeros, scales, numbers = _grid(weights, torch.arange(weights.shape[1]) // group, 4, torch.float16)
        packed = {".qweight": _nibbles(codes.T, 4, order), ".qzeros": _nibbles(zeros.T, 4, order)}
        return packed | {".scales": scales.T}, numbers

    return encode


def pack_quantized(
    group: int, zero_points: bool = False, shuffled: bool = False, bits: int = 4, one: bool = False
) -> Any:
    """`group` 0: a scale for each output; `one`: for all of them."""

    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs = weights.shape[1]
        of = torch.arange(inputs) // (group or inputs)
        of = of[torch.randperm(inputs)] if shuffled else of
        codes, zeros, scales, numbers = _grid(weights, of, bits, torch.bfloat16)
        scales = scales[:1, :1].expand_as(scales) if one else scales
        found = {
            ".weight_packed": _nibbles(codes, bits), ".weight_scale": scales[0, :1] if one else scales,
            ".weight_shape": torch.tensor(weights.shape),
        }  # fmt: skip
        if zero_points:
            found[".weight_zero_point"] = _nibbles(zeros.T, bits).T
        else:
            numbers = (codes - 2 ** (bits - 1)).bfloat16() * scales[:, of]
        return found | ({".weight_g_idx": of.to(torch.int32)} if shuffled else {}), numbers

    return encode


def float4(group: int, whole: str = "", flat: bool = False) -> Any:
    """e2m1 with an exponent (32 to a group) or an e4m3 scale (16); `whole`: the ending of a number for all of it.

    Weights of a stack are [E, in, out], and their codes gpt-oss's, [E, out, in / 32, 16] or, `flat`, [E, out, in / 2].
    """

    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        stacked = weights.dim() == 3
        rows = weights.transpose(1, 2) if stacked else weights
        grouped = rows.reshape(*rows.shape[:-1], -1, group)
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
        most = grouped.abs().amax(-1).clamp(min=1e-6) / 6
        number = torch.rand(1) + 1 if whole else torch.ones(1)
        if group == 32:
            stored = (most.log2().round() + 127).to(torch.uint8)
            scales = torch.ldexp(torch.ones(stored.shape), stored.int() - 127)
        else:
            stored = (most * number).to(torch.float8_e4m3fn)
            scales = stored.float() / number if whole == ".weight_global_scale" else stored.float() * (1 / number)
            if whole == ".weight_scale_2":
                number = 1 / number
                scales = stored.float() * number
        codes = (grouped[..., None] / scales[..., None, None] - table).abs().argmin(-1)
        numbers = (table[codes] * scales[..., None]).bfloat16().view(rows.shape)
        octets = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        if stacked:
            return {"_blocks": octets.flatten(-2) if flat else octets, "_scales": stored}, numbers.transpose(1, 2)
        word = ".weight_packed" if whole != ".weight_scale_2" else ".weight"
        found = {word: octets.flatten(-2), ".weight_scale": stored, ".input_scale": torch.ones(())}
        return found | ({whole: number if word != ".weight" else number.view(())} if whole else {}), numbers

    return encode


def mlx(bits: int, group: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Whole numbers without gaps, times a scale, plus a bias: product and sum each rounded."""

    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        grouped = weights.reshape(*weights.shape[:-1], -1, group)
        low, high = grouped.amin(-1).to(dtype), grouped.amax(-1).to(dtype)
        scales = ((high - low) / (2**bits - 1)).to(dtype)
        codes = ((grouped - low[..., None].float()) / scales[..., None].float()).round().clamp(0, 2**bits - 1)
        numbers = codes.to(dtype) * scales[..., None] + low[..., None]
        stream = codes.to(torch.int64)[..., None] >> torch.arange(bits) & 1  # lowest bit first
        octets = np.packbits(stream.reshape(*weights.shape[:-1], -1).to(torch.uint8).numpy(), -1, "little")
        words = torch.from_numpy(octets.view(np.uint32))
        return {".weight": words, ".scales": scales, ".biases": low}, numbers.view(weights.shape)

    return encode


def mlx_float4(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    parts, numbers = float4(32)(weights)
    words = torch.from_numpy(parts[".weight_packed"].numpy().view(np.uint32))
    return {".weight": words, ".scales": parts[".weight_scale"]}, numbers


def mlx_float8(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    grouped = weights.reshape(*weights.shape[:-1], -1, 32)
    exponents = (grouped.abs().amax(-1).clamp(min=1e-6) / 448).log2().ceil()
    codes = (grouped / exponents.exp2()[..., None]).to(torch.float8_e4m3fn)
    numbers = (codes.float() * exponents.exp2()[..., None]).bfloat16().view(weights.shape)
    words = torch.from_numpy(codes.view(weights.shape).view(torch.uint8).numpy().view(np.uint32))
    return {".weight": words, ".scales": (exponents + 127).to(torch.uint8)}, numbers


def int8(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """compressed-tensors' int-quantized: a scale for each output."""
    scales = (0.002 + 0.01 * torch.rand(len(weights), 1)).bfloat16()
    codes = (weights / scales.float()).round().clamp(-128, 127).to(torch.int8)
    return {".weight": codes, ".weight_scale": scales}, codes.bfloat16() * scales


def bnb4(kind: str, nested: bool) -> Any:
    """By bitsandbytes itself, which also says what the codes stand for."""

    def encode(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, state = functional.quantize_4bit(weights.bfloat16(), compress_statistics=nested, quant_type=kind)
        beside = {f".weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {".weight": codes, **beside}, functional.dequantize_4bit(codes, state)

    return encode


def bnb8(weights: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, maxima, _ = functional.int8_vectorwise_quant(weights.half())
    found = {".weight": codes, ".SCB": maxima, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return found, functional.int8_vectorwise_dequant(codes, maxima).bfloat16()


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
GPTQ = {"quant_method": "gptq"}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {"targets": ["re:.*experts.*"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}},
        "group_1": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}},
    },
}  # fmt: skip


def compressed(**weights: Any) -> dict[str, Any]:
    """The quantization_config of compressed-tensors, alike for all matrices."""
    return {
        "quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}
    }  # fmt: skip


_MLA = {"hidden_size": 64, "moe_intermediate_size": 48, "intermediate_size": 96}
CASES: dict[str, Case] = {
    "fp8, blocks of 128": Case(
        fp8(128, 128), FP8 | {"weight_block_size": [128, 128]}, "fp8", "deepseek_v3",
        {"hidden_size": 192, "moe_intermediate_size": 136, "intermediate_size": 160},
    ),
    "fp8, small blocks": Case(fp8(16, 32), FP8 | {"weight_block_size": [16, 32]}, "fp8", "qwen3_moe", _MLA),
    "fp8, no block size said": Case(fp8(128, 128), FP8, "fp8", "minimax_m2", {"hidden_size": 64}),
    "fp8, fused experts": Case(
        fp8(16, 32), FP8 | {"weight_block_size": [16, 32]}, "fp8", "mixtral", {"intermediate_size": 40}, fused=True
    ),
    "fp8, rows": Case(fp8(1, 0, "_scale"), {"quant_method": "compressed-tensors"}, "fp8"),
    "fp8, rows without a second axis": Case(fp8(1, 0, "_scale", flat=True), FP8, "fp8"),
    "fp8, one scale": Case(fp8(0, 0, "_scale", flat=True), FP8, "fp8"),
    "int8, rows": Case(int8, {"quant_method": "compressed-tensors"}, "int8"),
    "gptq, 4 bits": Case(gptq(4, 32), GPTQ | {"bits": 4, "group_size": 32}, "gptq", format="float16"),
    "gptq, 8 bits, in any order": Case(
        gptq(8, 16, shuffled=True), GPTQ | {"bits": 8, "group_size": 16, "desc_act": True}, "gptq", "qwen3_moe", _MLA,
        format="float16",
    ),
    "gptq, 2 bits, version 2": Case(
        gptq(2, 32, 0), GPTQ | {"bits": 2, "group_size": 32, "checkpoint_format": "gptq_v2"}, "gptq", format="float16"
    ),
    "gptq, experts alone": Case(
        gptq(4, 16, dtype=torch.bfloat16), GPTQ | {"dynamic": {"+:.*experts.*": {"group_size": 16}}, "group_size": 32},
        "gptq", only="experts",
    ),
    "awq": Case(
        awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, "awq", format="float16"
    ),
    "compressed-tensors, groups": Case(
        pack_quantized(32), COMPRESSED, "compressed-tensors 4-bit", "deepseek_v3",
        _MLA | {"moe_intermediate_size": 64}, ".experts.",
    ),
    "compressed-tensors, zero points, in any order": Case(
        pack_quantized(32, True, True), COMPRESSED, "compressed-tensors 4-bit"
    ),
    "compressed-tensors, rows": Case(
        pack_quantized(0, True), {"quant_method": "compressed-tensors"}, "compressed-tensors 4-bit"
    ),
    **{
        f"compressed-tensors, 8 bits, {kind}": Case(
            pack_quantized(group, zeros, bits=8, one=kind == "one scale"),
            compressed(num_bits=8, type="int", group_size=group or None, strategy=strategy),
            "compressed-tensors 8-bit", "qwen3_moe", _MLA,
        )
        for kind, group, zeros, strategy in (
            ("groups", 16, False, "group"), ("rows, zero points", 0, True, "channel"), ("one scale", 0, False, "tensor")
        )
    },
    "compressed-tensors, nvfp4": Case(
        float4(16, ".weight_global_scale"), compressed(num_bits=4, type="float", group_size=16),
        "compressed-tensors fp4", "qwen3_moe", _MLA,
    ),
    "compressed-tensors, mxfp4": Case(
        float4(32), compressed(num_bits=4, type="float", group_size=32), "compressed-tensors fp4", "deepseek_v3",
        _MLA | {"moe_intermediate_size": 64}, ".experts.",
    ),
    "compressed-tensors, fp8, groups": Case(
        fp8(1, 16, "_scale"), compressed(num_bits=8, type="float", group_size=16, strategy="group"), "fp8"
    ),
    "ModelOpt, nvfp4": Case(
        float4(16, ".weight_scale_2"), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt nvfp4"
    ),
    "mxfp4": Case(
        float4(32), {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4", "gpt_oss",
        {"hidden_size": 64, "intermediate_size": 32}, fused=True,
    ),
    "mxfp4, square and flat": Case(
        float4(32, flat=True), {"quant_method": "mxfp4"}, "mxfp4", "gpt_oss",
        {"hidden_size": 64, "intermediate_size": 64}, fused=True,
    ),
    **{
        f"MLX, {bits} bits": Case(
            mlx(bits, group, dtype), {"group_size": group, "bits": bits}, f"MLX {bits}-bit", family, changes,
            format="float16" if dtype is torch.float16 else "bfloat16",
        )
        for bits, group, dtype, family, changes in (
            (2, 32, torch.bfloat16, "mixtral", {"hidden_size": 64, "intermediate_size": 96}),
            (3, 32, torch.float16, "mixtral", {"hidden_size": 64, "intermediate_size": 96}),
            (4, 64, torch.bfloat16, "qwen3_moe", {"hidden_size": 64, "moe_intermediate_size": 64}),
            (5, 32, torch.bfloat16, "mixtral", {"hidden_size": 64, "intermediate_size": 96}),
            (6, 32, torch.bfloat16, "minimax_m2", {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16}),
            (8, 128, torch.float16, "mixtral", {"hidden_size": 128, "intermediate_size": 128}),
        )
    },
    "MLX, mxfp4": Case(
        mlx_float4, {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MLX mxfp4",
        changes={"hidden_size": 64, "intermediate_size": 96},
    ),
    "MLX, mxfp8": Case(
        mlx_float8, {"group_size": 32, "bits": 8, "mode": "mxfp8"}, "MLX mxfp8",
        changes={"hidden_size": 64, "intermediate_size": 96},
    ),
    # with AVX-512 bitsandbytes itself takes the wrong maxima of nf4 where a block of 64 goes across rows
    "bitsandbytes, nf4": Case(
        bnb4("nf4", False), BNB4, "bitsandbytes 4-bit", changes={"hidden_size": 64, "intermediate_size": 128}
    ),
    "bitsandbytes, nf4 twice": Case(
        bnb4("nf4", True), BNB4, "bitsandbytes 4-bit", "qwen3_moe",
        {"hidden_size": 128, "moe_intermediate_size": 64, "intermediate_size": 128},
    ),
    "bitsandbytes, fp4 twice": Case(
        bnb4("fp4", True), BNB4, "bitsandbytes 4-bit", changes={"hidden_size": 72, "intermediate_size": 154}
    ),
    "bitsandbytes, int8": Case(bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
}  # fmt: skip

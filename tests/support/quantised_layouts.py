"""Tensors as public repositories store them quantised: blocks of fp8, packed int4, GPTQ, and gpt-oss in MXFP4."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.support.oracle import transformers

Tensors = dict[str, torch.Tensor]
_QUANTISED = re.compile(r".*(_proj|_proj_with_mqa|\.w[123])\.weight")
_BLOCK = 128


def _dealt(tensors: Tensors, store: Any) -> Tensors:
    found: Tensors = {}
    for name, each in tensors.items():
        matrix = each.dim() == 2 and _QUANTISED.fullmatch(name)
        found |= store(name.removesuffix(".weight"), each.float()) if matrix else {name: each}
    return found


def fp8(tensors: Tensors) -> Tensors:
    """DeepSeek-V3's: e4m3, and `weight_scale_inv` in float32 for each block of 128 x 128."""

    def store(name: str, each: torch.Tensor) -> Tensors:
        rows, columns = (-(-size // _BLOCK) for size in each.shape)
        scales = each.new_full((rows, columns), float(each.abs().max()) / 448)
        return {
            f"{name}.weight": (each / scales[0, 0]).to(torch.float8_e4m3fn),
            f"{name}.weight_scale_inv": scales,
        }

    return _dealt(tensors, store)


def int4(tensors: Tensors) -> Tensors:
    """compressed-tensors' pack-quantized: eight numbers a word along a row, a scale for 32 of them."""

    def store(name: str, each: torch.Tensor) -> Tensors:
        rows, columns = each.shape
        if columns % 32 or ".experts." not in name:
            return {f"{name}.weight": each.bfloat16()}
        return {
            f"{name}.weight_packed": torch.zeros(rows, columns // 8, dtype=torch.int32),
            f"{name}.weight_scale": torch.ones(rows, columns // 32, dtype=torch.bfloat16),
            f"{name}.weight_shape": torch.tensor([rows, columns], dtype=torch.int32),
        }

    return _dealt(tensors, store)


def gptq(tensors: Tensors, group: int = 32) -> Tensors:
    """Eight numbers a word along a column, with zero points, scales and the group of each input."""

    def store(name: str, each: torch.Tensor) -> Tensors:
        rows, columns = each.shape
        return {
            f"{name}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
            f"{name}.qzeros": torch.zeros(columns // group, rows // 8, dtype=torch.int32),
            f"{name}.scales": torch.ones(columns // group, rows, dtype=torch.float16),
            f"{name}.g_idx": torch.arange(columns, dtype=torch.int32) // group,
        }

    return _dealt(tensors, store)


def gpt_oss(rows: int) -> tuple[dict[str, Any], Tensors]:
    """openai/gpt-oss: the experts' matrices as `blocks` of 4-bit numbers with an exponent for 32."""
    library = transformers()
    config = library.GptOssConfig(
        vocab_size=rows, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        layer_types=["sliding_attention", "full_attention"], sliding_window=128, architectures=["GptOssForCausalLM"],
    )  # fmt: skip
    torch.manual_seed(0)
    found: Tensors = {}
    for name, each in library.GptOssForCausalLM(config).state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):  # [E, in, out]
            experts, inputs, outputs = each.shape
            found[f"{name}_blocks"] = torch.zeros(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
            found[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 120, dtype=torch.uint8)
        else:
            found[name] = each.bfloat16()
    scheme = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return config.to_dict() | {"quantization_config": scheme}, found

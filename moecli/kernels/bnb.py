"""Products with nf4 and int8 matrices by bitsandbytes, on their bytes as they lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli import formats
from moecli.formats import bnb
from moecli.formats.nf4 import BLOCK

# What the width must be a multiple of. On the CPU bitsandbytes begins an nf4 block with each row, our bytes do not;
# its int8 products on CUDA take four columns at a time.
_WIDTHS = {"nf4": BLOCK, "int8": 4}
_OUTLIER = 6.0  # columns of x that reach it are multiplied in 16 bits (arXiv 2208.07339, section 3.2)


def linear(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] times the packed matrix [out, in]: [T, out], in x's precision. By torch where bitsandbytes cannot."""
    rows, columns = shape
    if columns % _WIDTHS[dtype]:
        return formats.matmul(dtype, x, packed, shape)
    codes = packed[: rows * columns // (2 if dtype == "nf4" else 1)]
    largest = packed[len(codes) :].view(torch.float32)
    if dtype == "nf4":
        return _nf4(x, codes, largest, shape)
    return _int8(x.half(), codes.view(torch.int8).view(shape), largest).to(x.dtype)


def _nf4(x: Tensor, codes: Tensor, largest: Tensor, shape: tuple[int, int]) -> Tensor:
    module = bnb.load()
    state = module.functional.QuantState(largest, shape, blocksize=BLOCK, quant_type="nf4", dtype=x.dtype)
    product: Tensor = module.matmul_4bit(x, codes.view(-1, 1), state)
    return product


def _int8(x: Tensor, codes: Tensor, largest: Tensor) -> Tensor:
    """x in fp16 is rounded to int8 by rows, but for its outliers."""
    functional = bnb.load().functional
    rounded, scales, outliers = functional.int8_vectorwise_quant(x, threshold=_OUTLIER)
    product: Tensor = functional.int8_mm_dequant(functional.int8_linear_matmul(rounded, codes), scales, largest)
    if outliers is not None and len(outliers):
        weights = functional.int8_vectorwise_dequant(codes[:, outliers].contiguous(), largest)
        product += F.linear(x[:, outliers], weights.to(x.dtype))
    return product

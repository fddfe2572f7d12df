"""Packed matrices, experts, and what their products should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli import formats
from moecli.formats import TILED
from moecli.kernels import library, native
from moecli.kernels.linear import gated
from moecli.kernels.native import Expert
from moecli.model.spec import Activation

FORMATS = tuple(native.FORMATS)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(dtype: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    return formats.pack(dtype, gaussian(rows, columns, seed=seed) / columns**0.5)


def experts(dtype: str, width: int, inner: int, count: int) -> list[Expert]:
    return [
        (
            matrix(dtype, inner, width, seed=3 * i),
            matrix(dtype, inner, width, seed=3 * i + 1),
            matrix(dtype, width, inner, seed=3 * i + 2),
        )
        for i in range(count)
    ]


def rounded(dtype: str, x: Tensor) -> Tensor:
    """x [T, n] as the kernels multiply it, in fp64: for tiles as int8 with a scale per 32 has it."""
    if dtype not in TILED:
        return x.double()
    count = x.shape[1]
    groups = F.pad(x.float(), (0, -count % 32)).view(len(x), -1, 32)
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(largest, 127) / largest  # `127 / largest` would round twice
    codes = torch.where(largest < 1e-30, 0.0, (groups * inverse).round())
    return (codes.double() * (largest.double() / 127)).view(len(x), -1)[:, :count]


def product(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] times the matrix as it is stored, in fp64."""
    return x.double() @ formats.unpack(dtype, packed, shape, torch.float32).double().t()


def layer(
    dtype: str,
    x: Tensor,
    expert: Expert,
    inner: int,
    activation: Activation,
    biases: Sequence[Tensor | int] = (0, 0, 0),
) -> Tensor:
    """One expert, rounded where the kernels round."""
    width = x.shape[1]
    gate, up = (product(dtype, rounded(dtype, x), each, (inner, width)) for each in expert[:2])
    hidden = gated(activation, gate + biases[0], up + biases[1])
    return product(dtype, rounded(dtype, hidden), expert[2], (width, inner)) + biases[2]


def on_every_isa(call: Callable[[], Tensor]) -> Tensor:
    """The result, the same to the last bit."""
    results = []
    for name in library.isas():
        library.use_isa(name)
        results.append(call())
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]

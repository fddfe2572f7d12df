"""Matrices and errors that the format tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

import moecli
from moecli.formats import pack, unpack

TINY = Path(moecli.__file__).parent / "tiny" / "model.safetensors"


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, columns: int) -> torch.Tensor:
    """Student's t with four degrees of freedom, every row on its own scale."""
    squares = gaussian(4, rows, columns, seed=1).square().sum(0) / 4
    return gaussian(rows, columns, seed=2) / squares.sqrt() * gaussian(rows, 1, seed=3).exp()


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root of the squared error over the squared weights."""
    wanted = wanted.float()
    return float(((found.float() - wanted).square().sum() / wanted.square().sum()).sqrt())


def error(dtype: str, weights: torch.Tensor) -> float:
    """What a format loses of a matrix."""
    rows, columns = weights.shape
    return relative_error(unpack(dtype, pack(dtype, weights), (rows, columns), torch.float32), weights)


def tiny_experts() -> Iterator[torch.Tensor]:
    """Every expert matrix of the model that the package brings."""
    with safe_open(TINY, "pt") as file:
        for name in sorted(file.keys()):
            if ".experts." in name:
                yield file.get_tensor(name)

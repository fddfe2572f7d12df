"""q4 against GGUF's Q4_0, q4 and q3 against a search that spares no time."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from moecli.formats import q3, q4
from moecli.formats.codebook import MULTIPLES
from tests.support.weight_samples import error, gaussian, heavy, relative_error, tiny_experts

pytestmark = pytest.mark.slow

gguf = pytest.importorskip("gguf")


def q4_0(weights: torch.Tensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType.Q4_0
    numbers = np.ascontiguousarray(weights.float().numpy())
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind))


def test_no_expert_matrix_of_the_built_in_model_is_worse_than_in_q4_0() -> None:
    matrices = list(tiny_experts())
    assert len(matrices) > 20
    assert not [1 for weights in matrices if error("q4", weights) > relative_error(q4_0(weights), weights)]


@pytest.mark.parametrize("make", [gaussian, heavy])
def test_random_matrices_lose_less_than_in_q4_0(make: object) -> None:
    assert callable(make)
    weights = make(128, 1024)
    assert error("q4", weights) < 0.88 * relative_error(q4_0(weights), weights)


@pytest.mark.parametrize("codec", [q4, q3])
def test_the_search_is_close_to_an_exhaustive_one(codec: ModuleType) -> None:
    """Every multiple for every 16 weights, on many scales for every 256."""
    halves = torch.cat([gaussian(60, 256), heavy(60, 256)]).view(-1, 16, 16)
    codes = torch.tensor(codec.CODES, dtype=torch.float32)
    middles = (codes[1:] + codes[:-1]) / 2
    largest = halves.abs().amax((1, 2)) / 310
    best = torch.full((120,), torch.inf)
    for factor in torch.linspace(0.5, 1.3, 33).tolist():
        tried = torch.full((120, 16), torch.inf)
        for multiple in (sign * each for each in MULTIPLES for sign in (1, -1)):
            scale = (largest * factor * multiple).view(-1, 1, 1)
            found = codes[torch.bucketize(halves / scale, middles)] * scale
            tried = torch.minimum(tried, (found - halves).square().sum(2))
        best = torch.minimum(best, tried.sum(1))
    size = halves.square().sum((1, 2))
    packed = codec.unpack(codec.pack(halves.view(-1, 256)), (120, 256), torch.float32).view_as(halves)
    ours = (packed - halves).square().sum((1, 2))
    assert float((ours / size).mean()) < 1.05 * float((best / size).mean())

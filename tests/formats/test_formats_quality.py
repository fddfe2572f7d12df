"""q4 against GGUF's Q4_0, and against a search that spares no time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecli.formats import q4
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
    assert error("q4", weights) < 0.96 * relative_error(q4_0(weights), weights)


def test_the_search_is_close_to_an_exhaustive_one() -> None:
    groups = torch.cat([gaussian(200, 64), heavy(200, 64)])
    codes = torch.tensor(q4.CODEBOOK, dtype=torch.float32)
    middles = (codes[1:] + codes[:-1]) / 2
    largest = groups.abs().amax(1, keepdim=True) / 127
    best = torch.full((400,), torch.inf)
    for factor in torch.linspace(0.5, 1.4, 181).tolist():
        for scale in (largest * factor, largest * -factor):
            found = codes[torch.bucketize(groups / scale, middles)]
            fitted = (found * groups).sum(1, keepdim=True) / found.square().sum(1, keepdim=True)
            best = torch.minimum(best, (found * fitted - groups).square().sum(1))
    size = groups.square().sum(1)
    packed = torch.cat([q4.unpack(q4.pack(row[None]), (1, 64), torch.float32) for row in groups])
    ours = (packed - groups).square().sum(1)
    assert float((ours / size).mean()) < 1.015 * float((best / size).mean())

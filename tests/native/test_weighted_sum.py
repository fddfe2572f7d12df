"""A layer's experts summed in one call: the bits of one call for each expert, a product and an `index_add_`."""

from __future__ import annotations

import pytest
import torch

from moecli.kernels import library, native
from moecli.model.spec import Activation
from tests.support.native_samples import FORMATS, experts, gaussian

pytestmark = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
WIDTH, INNER = 96, 40


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", FORMATS)
def test_sums_are_those_of_expert_after_expert(dtype: str, precision: torch.dtype) -> None:
    tokens, counts = 23, [9, 0, 23, 1]
    x, all_experts = gaussian(tokens, WIDTH).to(precision), experts(dtype, WIDTH, INNER, len(counts))
    rows = torch.cat([torch.randperm(tokens, generator=torch.Generator().manual_seed(n))[:n] for n in counts])
    weights = gaussian(1, len(rows))[0]
    expected = torch.zeros(tokens, WIDTH)
    for expert, its, by in zip(all_experts, rows.split(counts), weights.split(counts), strict=True):
        made = native.feed_forward(dtype, x[its], [expert], INNER, Activation.SILU)[0]
        expected.index_add_(0, its, made.mul_(by[:, None]))
    for isa in library.isas():
        library.use_isa(isa)
        for at_once in (4, 512):
            sums = torch.zeros(tokens, WIDTH)
            native.add_weighted(sums, dtype, x, all_experts, INNER, Activation.SILU, counts, rows, weights, at_once)
            assert torch.equal(sums, expected), (isa, at_once)
    library.use_isa(library.isas()[0])


def test_rows_that_are_none_are_refused() -> None:
    x, one = gaussian(3, WIDTH), experts("q8", WIDTH, INNER, 1)
    for rows, counts in ((torch.tensor([3]), [1]), (torch.tensor([-1]), [1]), (torch.tensor([0, 1]), [1])):
        with pytest.raises(ValueError, match="row"):
            native.add_weighted(
                torch.zeros(3, WIDTH), "q8", x, one, INNER, Activation.SILU, counts, rows, torch.ones(len(rows)), 8
            )

"""Activations become the same int8 codes and scales on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moecli.kernels.gpu.quantise import quantise


def plain(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rule, in torch, for columns that are whole groups."""
    groups = x.float().view(len(x), -1, 32)
    absmax = groups.abs().amax(-1)
    codes = (groups * (torch.full_like(absmax, 127) / absmax).unsqueeze(-1)).round()
    codes[~((absmax >= 1e-30) & absmax.isfinite())] = 0
    scales = torch.where(absmax.isfinite(), absmax / 127 / 128, torch.nan)
    scales[absmax < 1e-30] = 0
    return codes.view(len(x), -1).to(torch.int8), scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_scales_are_those_of_the_rule(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.randn(11, 320, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[:, :32] = torch.arange(-16, 16) / 2 + 0.25  # ties, once the largest is 63.5
    x[3, 31] = 63.5
    codes, scales = (each.cpu() for each in quantise(x.to(device)))
    wanted, wanted_scales = plain(x)
    assert torch.equal(codes, wanted)
    assert torch.equal(scales, wanted_scales)


def test_zeros_and_numbers_that_are_not_finite(device: torch.device) -> None:
    x = torch.ones(1, 128)
    x[0, :32], x[0, 40], x[0, 70] = 1e-31, torch.inf, torch.nan
    codes, scales = (each.cpu() for each in quantise(x.to(device)))
    assert codes.view(4, 32).amax(1).tolist() == [0, 0, 0, 127]
    assert scales[0, 0] == 0
    assert scales[0, 1:3].isnan().all()


def test_missing_columns_are_zeros(device: torch.device) -> None:
    x = torch.randn(9, 37, generator=torch.Generator().manual_seed(2))
    codes, scales = (each.cpu() for each in quantise(x.to(device)))
    wanted, wanted_scales = plain(torch.nn.functional.pad(x, (0, 27)))
    assert torch.equal(codes, wanted)
    assert torch.equal(scales, wanted_scales)


def test_the_places_for_prompts(device: torch.device) -> None:
    """Fp16, columns as products of prompts meet them: 16 h + 4 j + b at 8 j + 2 b + h."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    codes, scales = (each.cpu() for each in quantise(x.to(device), for_prompts=True))
    wanted, wanted_scales = plain(x)
    assert torch.equal(codes, wanted.view(3, 2, 2, 4, 4).permute(0, 1, 3, 4, 2).reshape(3, 64).half())
    assert torch.equal(scales, wanted_scales)

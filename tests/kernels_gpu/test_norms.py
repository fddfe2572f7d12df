"""Between the products of a decode step: a branch is added and the sum normed as the layers in torch do it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moecli.engine.layers import normalise
from moecli.engine.router import sigmoid
from moecli.kernels.gpu.norms import Branch, Normed, add_and_norm
from moecli.kernels.gpu.quantise import quantise
from moecli.model.spec import NormKind
from tests.support.native_samples import gaussian

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ROUNDING = {FP32: 2e-6, BF16: 2**-7, FP16: 2**-10}  # of the largest number: one rounding, of states or of a gate
EPS = 1e-5


def by_layers(
    x: Tensor, branch: Branch, after: Tensor | None, kind: NormKind, multiplier: float, before: Tensor
) -> tuple[Tensor, Tensor]:
    """States and normed states, with the roundings of `engine.block`."""
    tokens, columns = x.shape
    outputs = branch.outputs.float().view(tokens, -1, columns)
    if branch.weights is not None:
        outputs = outputs * branch.weights[..., None]
    out = outputs.sum(1).to(x.dtype)
    if branch.shared is not None:
        shared = branch.shared.to(x.dtype)
        out = out + (shared if branch.gate is None else shared * sigmoid(branch.gate))
    if after is not None:
        out = normalise(out, after, kind, EPS)
    x = x + out * multiplier
    return x, normalise(x, before, kind, EPS)


def branch_of(name: str, tokens: int, columns: int, precision: torch.dtype) -> Branch:
    if name == "attention":
        return Branch(gaussian(tokens, columns, seed=2).to(precision))
    outputs, weights = gaussian(tokens * 3, columns, seed=3), gaussian(tokens, 3, seed=4).softmax(-1)
    shared = gaussian(tokens, columns, seed=5) if name != "experts" else None
    gate = gaussian(tokens, 1, seed=6).to(precision) if name == "gated" else None
    return Branch(outputs, weights, shared, gate)


def moved(branch: Branch, device: torch.device) -> Branch:
    parts = (branch.outputs, branch.weights, branch.shared, branch.gate)
    return Branch(*(None if each is None else each.to(device) for each in parts))


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize(
    ("tokens", "columns", "name", "kind", "after", "multiplier"),
    [
        (1, 64, "attention", NormKind.RMS, False, 1.0),
        (3, 40, "attention", NormKind.LAYER, False, 1.0),
        (2, 96, "experts", NormKind.RMS, False, 0.4),
        (2, 40, "shared", NormKind.RMS, False, 1.0),
        (8, 96, "gated", NormKind.RMS, False, 1.0),
        (2, 100, "gated", NormKind.RMS, True, 0.7),
        (2, 100, "experts", NormKind.LAYER, True, 1.0),
    ],
)
def test_a_branch_is_added(
    tokens: int,
    columns: int,
    name: str,
    kind: NormKind,
    after: bool,
    multiplier: float,
    precision: torch.dtype,
    device: torch.device,
) -> None:
    x, branch = gaussian(tokens, columns, seed=1).to(precision), branch_of(name, tokens, columns, precision)
    before, behind = ((1 + gaussian(columns, seed=seed) / 3).to(precision) for seed in (7, 8))
    wanted = by_layers(x, branch, behind if after else None, kind, multiplier, before)
    states = x.to(device)
    normed = add_and_norm(
        states, moved(branch, device), before.to(device), after=behind.to(device) if after else None, kind=kind,
        eps=EPS, multiplier=multiplier,
    )  # fmt: skip
    for found, expected in zip((states, normed.states), wanted, strict=True):
        assert found.dtype == precision
        assert (found.cpu() - expected).abs().max() <= ROUNDING[precision] * expected.abs().max()
    is_quantised(normed)


@pytest.mark.parametrize("kind", [NormKind.RMS, NormKind.LAYER])  # the third is left to torch
def test_without_a_branch_states_are_left_alone(kind: NormKind, device: torch.device) -> None:
    x, before = gaussian(2, 72, seed=1) + 0.5, 1 + gaussian(72, seed=2) / 3
    states = x.to(device)
    normed = add_and_norm(states, None, before.to(device), kind=kind, eps=EPS)
    assert torch.equal(states.cpu(), x)
    assert torch.allclose(normed.states.cpu(), normalise(x, before, kind, EPS), rtol=1e-6, atol=1e-6)
    is_quantised(normed)


def is_quantised(normed: Normed) -> None:
    codes, scales = quantise(normed.states)
    assert torch.equal(normed.codes, codes)
    assert torch.equal(normed.scales, scales)

"""Products of prompts on a GPU, or in Triton's interpreter, against the weights as their formats unpack them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moecli import formats
from moecli.formats import PLAIN
from moecli.kernels.gpu import prompts
from moecli.kernels.linear import ACTIVATIONS
from moecli.model.spec import Activation
from tests.support import native_samples as samples

FORMATS = ("q4", "q3", "q8", "bf16", "fp16", "fp32")


def rounded(dtype: str, x: Tensor) -> Tensor:
    """As products of a format take activations, in fp64."""
    return x.to(formats.plain.torch_dtype(dtype)).double() if dtype in PLAIN else samples.rounded(dtype, x)


def close(found: Tensor, wanted: Tensor, error: float = 2e-6) -> bool:
    found = found.cpu()
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= error * wanted.abs().max())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(66, 70, 40), (12, 20, 808)])
def test_a_product_is_that_of_the_formats_own_weights(
    device: torch.device, dtype: str, tokens: int, rows: int, columns: int
) -> None:
    """Rows that end within a strip, columns within a group, tiles narrower than the others."""
    packed, x = samples.matrix(dtype, rows, columns), samples.gaussian(tokens, columns, seed=1)
    found = prompts.linear(dtype, x.to(device), packed.to(device), (rows, columns))
    assert close(found, samples.product(dtype, rounded(dtype, x), packed, (rows, columns)))


def test_the_result_is_in_the_precision_asked_for(device: torch.device) -> None:
    packed, x = samples.matrix("q4", 32, 64).to(device), samples.gaussian(16, 64).half().to(device)
    full = prompts.linear("q4", x, packed, (32, 64), torch.float32)
    assert torch.equal(prompts.linear("q4", x, packed, (32, 64)), full.half())


Matrices = tuple[tuple[Tensor, Tensor], ...]  # bytes on the device, and the weights in fp64, of each


def made_expert(device: torch.device, dtype: str, hidden: int, inner: int, seed: int, gated: bool = True) -> Matrices:
    shapes = [(inner, hidden)] * (1 + gated) + [(hidden, inner)]
    packed = [samples.matrix(dtype, *shape, seed=seed + at) for at, shape in enumerate(shapes)]
    return tuple(
        (data.to(device), formats.unpack(dtype, data, shape, torch.float32).double())
        for data, shape in zip(packed, shapes, strict=True)
    )


def through(dtype: str, x: Tensor, expert: Matrices, activation: Activation) -> Tensor:
    """One expert of x [n, D], rounded where the kernels round, in fp64."""
    parts = [rounded(dtype, x) @ weights.t() for _, weights in expert[:-1]]
    made = ACTIVATIONS[activation](parts[0]) * (parts[1] if len(parts) == 2 else 1)
    return rounded(dtype, made.float()) @ expert[-1][1].t()


def addresses_of(experts: list[Matrices]) -> Tensor:
    addresses = torch.tensor([[data.data_ptr() for data, _ in expert] for expert in experts])
    return addresses.to(experts[0][0][0].device)


@pytest.mark.parametrize("dtype", FORMATS)
def test_experts_give_their_weighted_sum(device: torch.device, dtype: str) -> None:
    hidden, inner, count, tokens = 40, 32, 4, 13
    experts = [made_expert(device, dtype, hidden, inner, 10 * each) for each in range(count)]
    x = samples.gaussian(tokens, hidden, seed=1)
    ids = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(t))[:2] for t in range(tokens)])
    ids[ids == 1] = 3  # nobody takes 1
    weights = samples.gaussian(tokens, 2, seed=2).abs()
    given = (each.to(device) for each in (x, ids, weights))
    found = prompts.experts(dtype, *given, addresses_of(experts), inner, Activation.SILU)
    wanted = torch.zeros(tokens, hidden, dtype=torch.float64)
    for token in range(tokens):
        for expert, weight in zip(ids[token].tolist(), weights[token], strict=True):
            wanted[token] += weight * through(dtype, x[token : token + 1], experts[expert], Activation.SILU)[0]
    assert close(found, wanted, 4e-3 if dtype == "bf16" else 2e-4)  # a number inside may fall to the other side


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_some_experts_and_the_tokens_of_each(device: torch.device, activation: Activation, gated: bool) -> None:
    """More tokens than a block takes, an expert without any, and no matrix for a gate."""
    hidden, inner, counts = 40, 80, (70, 0, 3)
    experts = [made_expert(device, "q8", hidden, inner, 10 * each, gated) for each in range(3)]
    x = samples.gaussian(80, hidden, seed=1)
    tokens = [torch.randperm(80, generator=torch.Generator().manual_seed(n))[:n] for n in counts]
    first = torch.tensor([0, 70, 70, 73])
    given = (each.to(device) for each in (x, torch.cat(tokens), first))
    found = prompts.expert_outputs("q8", *given, addresses_of(experts), inner, activation)
    wanted = [through("q8", x[tokens[each]], experts[each], activation) for each in (0, 2)]
    assert close(found, torch.cat(wanted), 2e-4)


def test_company_changes_no_bit(device: torch.device) -> None:
    """Neither other tokens and experts nor the sizes of blocks; and the sum is in the order of the experts' numbers."""
    hidden, inner, tokens = 32, 32, 21
    experts = [made_expert(device, "q4", hidden, inner, 10 * each) for each in range(3)]
    x, weights = samples.gaussian(tokens, hidden, seed=1).to(device), samples.gaussian(tokens, 2, seed=2).to(device)
    ids = torch.tensor([[2, 0]] * 10 + [[0, 1]] * 11).to(device)
    found = prompts.experts("q4", x, ids, weights, addresses_of(experts), inner, Activation.SILU)
    wanted = torch.zeros(tokens, hidden, device=device)
    for number, expert in enumerate(experts):
        rows, ranks = (ids == number).nonzero(as_tuple=True)
        ends = torch.tensor([0, len(rows)]).to(device)
        part = prompts.expert_outputs("q4", x, rows, ends, addresses_of([expert]), inner, Activation.SILU)
        wanted.index_add_(0, rows, part * weights[rows, ranks, None])
    assert torch.equal(found, wanted)

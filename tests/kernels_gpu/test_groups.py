"""A prompt's experts on a GPU go by groups, and their weighted sum stays what it is."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import torch
from torch import Tensor

from moecli.experts import store
from moecli.experts.arena import CPU
from moecli.experts.store import Group, Statistics, moe_forward
from moecli.kernels import choice, library
from moecli.kernels.linear import as_matrix, linear
from moecli.model.spec import Activation
from tests.support import native_samples as samples

HIDDEN, INNER, EXPERTS, TOKENS = 32, 32, 4, 20
cpu = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
SHAPES = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    choice.chosen.cache_clear()
    monkeypatch.setenv("MOECLI_KERNEL", "triton")
    yield
    choice.chosen.cache_clear()


class Experts:
    """All on a device, handed over in groups of some numbers."""

    dtype = "q8"
    statistics = Statistics()

    def __init__(self, device: torch.device, *groups: list[int]) -> None:
        self.device = device
        self._groups = groups
        self._experts = [
            tuple(as_matrix("q8", shape, data.to(device)) for shape, data in zip(SHAPES, packed, strict=True))
            for packed in samples.experts("q8", HIDDEN, INNER, EXPERTS)
        ]

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        for group in self._groups:
            yield [(number, self._experts[number]) for number in group]

    def addresses(self, layer: int) -> None:
        """None: not asked for."""

    def records(self, layer: int) -> None:
        """The same."""


def forward(experts: Experts) -> Tensor:
    x, weights = samples.gaussian(TOKENS, HIDDEN, seed=1), samples.gaussian(TOKENS, 2, seed=2)
    ids = torch.tensor([[3, 0], [1, 3], [0, 1], [3, 2]]).repeat(TOKENS // 4, 1)
    given = (each.to(experts.device) for each in (x, ids, weights))
    return moe_forward(experts, 0, Activation.SILU, *given).cpu()


def test_groups_and_their_order_change_no_bit(
    by_triton: None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = forward(Experts(device, [0, 1, 2, 3]))
    assert torch.equal(forward(Experts(device, [2, 3], [1], [0])), together)
    monkeypatch.setattr(store, "GROUPED", 12)  # experts 0 and 1 have ten tokens each
    assert torch.equal(forward(Experts(device, [0, 1, 2, 3])), together)


@cpu
def test_the_sum_is_that_of_the_cpu(by_triton: None, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    found = forward(Experts(device, [0, 1, 2, 3]))
    monkeypatch.setenv("MOECLI_KERNEL", "native")
    choice.chosen.cache_clear()
    wanted = forward(Experts(CPU, [0, 1, 2, 3]))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@cpu
def test_a_linear_layer_goes_the_same_way(
    by_triton: None, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, x = samples.matrix("q4", 40, 96), samples.gaussian(TOKENS, 96, seed=1)
    found = linear(x.to(device), as_matrix("q4", (40, 96), packed.to(device))).cpu()
    monkeypatch.setenv("MOECLI_KERNEL", "native")
    choice.chosen.cache_clear()
    wanted = linear(x, as_matrix("q4", (40, 96), packed))
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()

"""Products of a few tokens by Triton are those of the native kernels, and of torch where weights are plain numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moecli.experts.arena import Arena
from moecli.formats import SEARCHED
from moecli.kernels import library, native
from moecli.kernels.gpu.norms import Normed
from moecli.kernels.gpu.products import Experts, linear
from moecli.kernels.linear import ACTIVATIONS
from moecli.model.spec import Activation, FeedForward
from moecli.store.expert_record import Record, expert_record
from tests.support.native_samples import gaussian, matrix

ROUNDING = 3e-6  # of sums in float32: what is rounded before is the same
PLAIN = {torch.float32: ("fp32", 1e-6), torch.bfloat16: ("bf16", 1e-2), torch.float16: ("fp16", 1e-3)}
MANY_STRIPS = (1100, 40)
SEVERAL_ROUNDS = [pytest.param(shape, marks=pytest.mark.slow) for shape in ((33, 1536), (20, 2080))]
SHAPES = [(96, 1024), (40, 608), (17, 40), MANY_STRIPS, *SEVERAL_ROUNDS]  # rows, columns

needs_native = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.cpu().double() - wanted).norm() / wanted.double().norm())


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", SEARCHED)
def test_a_matrix(dtype: str, shape: tuple[int, int], device: torch.device) -> None:
    """And what a token gives is the same to the bit whoever is beside it."""
    packed, x = matrix(dtype, *shape), gaussian(8, shape[1], seed=1)
    wanted = native.linear(dtype, x, packed, shape)
    alone = linear(x[3:4].to(device), dtype, packed.to(device), shape)
    assert alone.shape == (1, shape[0]) and alone.dtype == torch.float32
    assert distance(alone, wanted[3:4]) < ROUNDING
    for first, last in ((0, 8), (2, 4)):
        found = linear(x[first:last].to(device), dtype, packed.to(device), shape)
        assert distance(found, wanted[first:last]) < ROUNDING
        assert torch.equal(found[3 - first], alone[0])


class Sample:
    """A few experts in an arena, and themselves."""

    def __init__(self, dtype: str, width: int, ffn: FeedForward, device: torch.device, count: int = 4) -> None:
        self.dtype, self.width, self.ffn = dtype, width, ffn
        record: Record = expert_record(width, ffn, dtype)
        arena = Arena(count, record.stride, device)
        self.matrices = [self._fill(record, arena.slot(number), number) for number in range(count)]
        addresses = [arena.slot(number).data_ptr() for number in range(count)]
        at = {name: field.offset for name, field in record.fields.items()}
        self.arena, self.records = arena, torch.tensor(addresses, device=device)
        self.experts = Experts(
            dtype, width, ffn.intermediate_size, ffn.activation, self.records, at.get("gate"), at["up"], at["down"]
        )

    def _fill(self, record: Record, slot: Tensor, number: int) -> list[Tensor]:
        made = []
        for place, field in enumerate(record.fields.values()):
            made.append(matrix(self.dtype, *field.shape, seed=10 * number + place))
            slot[field.offset : field.offset + field.size] = made[-1].to(slot.device)
        return made

    def wanted(self, x: Tensor, ids: list[int], top_k: int) -> Tensor:
        """By the CPU, one choice at a time."""
        tokens = [x[place // top_k, None] for place in range(len(ids))]
        by = self._native if self.dtype in SEARCHED else self._torch
        return torch.cat([by(token, self.matrices[expert]) for token, expert in zip(tokens, ids, strict=True)])

    def _native(self, x: Tensor, matrices: list[Tensor]) -> Tensor:
        return native.feed_forward(self.dtype, x, [matrices], self.ffn.intermediate_size, self.ffn.activation)[0]

    def _torch(self, x: Tensor, matrices: list[Tensor]) -> Tensor:
        inner = self.ffn.intermediate_size
        *first, down = (each.view(x.dtype).double() for each in matrices)
        products = [x.double() @ each.view(inner, self.width).t() for each in first]
        hidden = ACTIVATIONS[self.ffn.activation](products[0])
        if self.ffn.gated:
            hidden = hidden * products[1]
        return hidden.to(x.dtype).double() @ down.view(self.width, inner).t()


IDS = [2, 0, 1, 2]  # of two tokens
CASES = [  # width, experts, who is chosen by two tokens: the interpreter takes its time for each program
    (64, FeedForward(40, Activation.RELU, gated=False), IDS),
    (512, FeedForward(32), [1, 3]),
    (288, FeedForward(80, Activation.GELU_TANH), [0, 1]),
    (40, FeedForward(512, Activation.GELU), [2, 2]),
]
PLAIN_CASES = [(40, FeedForward(12), IDS), (24, FeedForward(18, Activation.GELU, gated=False), IDS)]


@needs_native
@pytest.mark.parametrize(("width", "ffn", "ids"), CASES)
@pytest.mark.parametrize("dtype", SEARCHED)
def test_packed_experts(dtype: str, width: int, ffn: FeedForward, ids: list[int], device: torch.device) -> None:
    same_as_on_the_cpu(Sample(dtype, width, ffn, device), ids, gaussian(2, width), ROUNDING, device)


@pytest.mark.parametrize(("width", "ffn", "ids"), PLAIN_CASES)
@pytest.mark.parametrize("precision", PLAIN)
def test_plain_experts(
    precision: torch.dtype, width: int, ffn: FeedForward, ids: list[int], device: torch.device
) -> None:
    dtype, rounding = PLAIN[precision]
    same_as_on_the_cpu(Sample(dtype, width, ffn, device), ids, gaussian(2, width).to(precision), rounding, device)


def same_as_on_the_cpu(sample: Sample, ids: list[int], x: Tensor, rounding: float, device: torch.device) -> None:
    """And a token alone gives the same bits."""
    top_k = len(ids) // 2
    chosen = torch.tensor(ids, device=device)
    found = sample.experts(Normed.of(x.to(device)), chosen, top_k)
    assert found.shape == (len(ids), sample.width) and found.dtype == torch.float32
    assert distance(found, sample.wanted(x, ids, top_k)) < rounding
    if len(ids) == len(IDS):
        assert torch.equal(sample.experts(Normed.of(x[1:].to(device)), chosen[top_k:], top_k), found[top_k:])


@pytest.mark.parametrize("dtype", ["q4", "fp32"])
def test_an_expert_that_is_elsewhere_is_left_to_others(dtype: str, device: torch.device) -> None:
    sample = Sample(dtype, 40, FeedForward(24), device)
    normed, ids = Normed.of(gaussian(2, 40).to(device)), torch.tensor(IDS, device=device)
    whole = sample.experts(normed, ids, 2)
    sample.records[2] = 0
    out = torch.full((4, 40), 7.0, device=device)
    assert sample.experts(normed, ids, 2, out) is out
    assert torch.equal(out[1:3], whole[1:3])
    assert bool((out[[0, 3]] == 7).all())


@pytest.mark.parametrize("dtype", ["q3", "fp32"])
def test_the_last_matrices_may_lie_apart(dtype: str, device: torch.device) -> None:
    """As where one expert, which every token takes, is two matrices."""
    sample = Sample(dtype, 40, FeedForward(24), device)
    normed, ids = Normed.of(gaussian(2, 40).to(device)), torch.tensor(IDS, device=device)
    own = sample.experts
    downs = sample.records + own.down
    apart = Experts(dtype, 40, 24, own.activation, own.records, own.gate, own.up, 0, downs)
    assert torch.equal(apart(normed, ids, 2), own(normed, ids, 2))

"""What lies between the products of a decode step: a branch is added, the sum is normed and rounded for the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecli.kernels.gpu.functions import device_function
from moecli.kernels.gpu.quantise import codes_and_scales, quantise
from moecli.model.spec import NormKind


@device_function
def _norm(x, mask, weight, columns, eps, RMS: tl.constexpr):
    """RMS or layer norm without bias of float32 numbers."""
    if RMS:
        scale = 1 / tl.sqrt_rn(tl.sum(x * x) / columns + eps)
        return x * scale * weight
    else:
        centred = tl.where(mask, x - tl.sum(x) / columns, 0.0)
        scale = 1 / tl.sqrt_rn(tl.sum(centred * centred) / columns + eps)
        return centred * scale * weight


@triton.jit
def _add_and_norm(
    x, outputs, weights, shared, gate, after, before, normed, codes, scales, columns, groups, eps, multiplier,
    CHOICES: tl.constexpr, RMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token of `add_and_norm`."""
    token = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < columns
    state = tl.load(x + token * columns + column, mask, 0.0)
    if outputs is not None:
        branch = tl.zeros([BLOCK], tl.float32)
        for choice in tl.static_range(CHOICES):
            at = token * CHOICES + choice
            share = tl.load(weights + at) if weights is not None else 1.0
            branch += share * tl.load(outputs + at * columns + column, mask, 0.0).to(tl.float32)
        branch = branch.to(state.dtype)
        if shared is not None:
            more = tl.load(shared + token * columns + column, mask, 0.0).to(tl.float32)
            if gate is not None:
                more = more.to(state.dtype).to(tl.float32) * (1 / (1 + tl.exp(-tl.load(gate + token).to(tl.float32))))
            branch = (branch.to(tl.float32) + more.to(state.dtype).to(tl.float32)).to(state.dtype)
        if after is not None:
            scale = tl.load(after + column, mask, 0.0).to(tl.float32)
            branch = _norm(branch.to(tl.float32), mask, scale, columns, eps, RMS).to(state.dtype)
        branch = (branch.to(tl.float32) * multiplier).to(state.dtype)
        state = (state.to(tl.float32) + branch.to(tl.float32)).to(state.dtype)
        tl.store(x + token * columns + column, state, mask)
    scale = tl.load(before + column, mask, 0.0).to(tl.float32)
    out = _norm(state.to(tl.float32), mask, scale, columns, eps, RMS).to(state.dtype)
    tl.store(normed + token * columns + column, out, mask)
    code, each = codes_and_scales(tl.reshape(out.to(tl.float32), [BLOCK // 32, 32]))
    group = tl.arange(0, BLOCK // 32)
    place = token * groups + group[:, None]
    tl.store(codes + place * 32 + tl.arange(0, 32)[None, :], code.to(tl.int8), (group < groups)[:, None])
    tl.store(scales + token * groups + group, each, group < groups)


@dataclass(frozen=True, slots=True)
class Normed:
    """Normed states [T, D], and the same rounded to int8 for packed weights: codes and scales as `quantise` gives."""

    states: Tensor
    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Normed:
        """States [T, D] as they are."""
        return cls(x, *quantise(x))

    @classmethod
    def empty(cls, tokens: int, columns: int, like: Tensor) -> Normed:
        groups = -(-columns // 32)
        return cls(
            like.new_empty(tokens, columns),
            like.new_empty(tokens, groups * 32, dtype=torch.int8),
            like.new_empty(tokens, groups, dtype=torch.float32),
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """What a half of a block adds: the weighted sum of outputs [T * A, D], weights [T, A] (None: 1), in their order;
    then `shared` [T, D], times the sigmoid of `gate` [T] where there is one."""

    outputs: Tensor
    weights: Tensor | None = None
    shared: Tensor | None = None
    gate: Tensor | None = None


def add_and_norm(
    x: Tensor,
    branch: Branch | None,
    before: Tensor,
    *,
    after: Tensor | None = None,
    kind: NormKind,
    eps: float,
    multiplier: float = 1.0,
) -> Normed:
    """x [T, D] += multiplier * after(branch), in place; returns before(x)."""
    tokens, columns = x.shape
    branch_of = (None,) * 4 if branch is None else (branch.outputs, branch.weights, branch.shared, branch.gate)
    choices = 1 if branch is None else len(branch.outputs) // tokens
    normed = Normed.empty(tokens, columns, x)
    block = max(32, triton.next_power_of_2(columns))
    _add_and_norm[(tokens,)](
        x, *branch_of, after, before, normed.states, normed.codes, normed.scales, columns, -(-columns // 32), eps,
        multiplier, choices, kind is NormKind.RMS, block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return normed

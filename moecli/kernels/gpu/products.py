"""Products of up to eight tokens with packed weights: one matrix, or the experts of a layer.

A program takes a few strips of 16 rows through all columns. Its threads share the groups of 32 columns, each keeps sums
of its own, and at the end these are added. Activations are int8 with a scale for each group, as on the CPU, and the
products of a group are the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecli.formats import PLAIN
from moecli.kernels.gpu import codes, interpreted, rows
from moecli.kernels.gpu.activations import NUMBERS, activate
from moecli.kernels.gpu.functions import device_function
from moecli.kernels.gpu.norms import Normed
from moecli.kernels.gpu.quantise import codes_and_scales, quantise
from moecli.model.spec import Activation

FORMATS = {"q4": 4, "q3": 3, "q8": 8}  # bits of an index

_TILE = tl.constexpr(16)  # groups that lie together in a codebook's tile
_ROWS = tl.constexpr(16)


@device_function
def strip_words(columns, FORMAT: tl.constexpr):
    """32-bit words of a strip of 16 rows."""
    groups = (columns + 31) // 32
    if FORMAT == 8:
        return groups * 136
    else:
        return groups * (4 + 16 * FORMAT) + (columns + 255) // 256 * 8


@device_function
def row_sums(
    matrix,
    offsets,
    columns,
    x,
    scales,
    T: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUPS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """What T tokens make of R rows: a tuple of float32 [R].

    `matrix` points to int32 words, `offsets` [1, R] are where in it each row's strip begins; 16 rows in a row are one.
    `x` points to the tokens' lanes of four activations, [T, groups * 8], `scales` to [T, groups]. GROUPS are taken at
    once. WHOLE: groups are a multiple of GROUPS, and columns of a tile's.
    """
    groups = (columns + 31) // 32
    halves = matrix.to(tl.pointer_type(tl.float16))
    octets = matrix.to(tl.pointer_type(tl.int8))
    row = (tl.arange(0, offsets.shape[1]) % _ROWS)[None, :]
    sums = ()
    for _ in tl.static_range(T):
        sums = sums + (tl.full([GROUPS, offsets.shape[1]], 0, tl.float32),)
    for start in range(0, groups, GROUPS):
        group = start + tl.arange(0, GROUPS)[:, None]
        mask = None if WHOLE else group < groups
        if FORMAT == 8:
            at = offsets + group * 136
            factor = tl.load(halves + at * 2 + row, mask)
            products = _q8_products(matrix + at + 8 + row, mask, x, group, groups, T)
        else:
            tile = group // _TILE
            inside = group % _TILE
            width = 16 if WHOLE else tl.minimum(groups - tile * _TILE, _TILE)  # groups of this tile
            head = 16 if WHOLE else (width + 7) // 8 * 8
            at = offsets + tile * (_TILE * (4 + 16 * FORMAT) + 16)
            factor = tl.load(halves + at * 2 + inside // 8 * _ROWS + row, mask)
            choices = tl.load(octets + (at + head + inside * 4) * 4 + row, mask).to(tl.int32) & 255
            lines = matrix + at + head + width * 4 + inside * (16 * FORMAT) + row
            products = _book_products(lines, choices, mask, x, group, groups, T, FORMAT)
        new = ()
        for t in tl.static_range(T):
            share = tl.load(scales + t * groups + group, mask)
            new = new + (sums[t] + products[t].to(tl.float32) * (factor.to(tl.float32) * share),)
        if WHOLE:
            sums = new
        else:
            sums = _where(mask, new, sums, T)
    totals = ()
    for t in tl.static_range(T):
        totals = totals + (tl.sum(sums[t], 0),)
    return totals


@device_function
def _where(mask, new, old, T: tl.constexpr):
    """Element by element, of tuples."""
    chosen = ()
    for t in tl.static_range(T):
        chosen = chosen + (tl.where(mask, new[t], old[t]),)
    return chosen


@device_function
def _q8_products(lines, mask, x, group, groups, T: tl.constexpr):
    """Of codes of 8 bits, int32 [G, R]: 8 lines a group."""
    products = ()
    for _ in tl.static_range(T):
        products = products + (tl.full(lines.shape, 0, tl.int32),)
    for j in tl.static_range(8):
        line = tl.load(lines + j * _ROWS, mask)
        new = ()
        for t in tl.static_range(T):
            lane = tl.load(x + t * groups * 8 + group * 8 + j, mask)
            new = new + (codes.dp4a(line, lane, products[t]),)
        products = new
    return products


@device_function
def _book_products(lines, choices, mask, x, group, groups, T: tl.constexpr, FORMAT: tl.constexpr):
    """Of a codebook's, times their multiples, int32 [G, R]."""
    first, second = (), ()
    for _ in tl.static_range(T):
        first = first + (tl.full(lines.shape, 0, tl.int32),)
        second = second + (tl.full(lines.shape, 0, tl.int32),)
    for j in tl.static_range(4):
        if FORMAT == 4:
            low, high = codes.q4_codes(tl.load(lines + j * _ROWS, mask))
        else:
            low, high = codes.q3_codes(tl.load(lines + j // 2 * _ROWS, mask), tl.load(lines + 2 * _ROWS, mask), j)
        new_first, new_second = (), ()
        for t in tl.static_range(T):
            lane = tl.load(x + t * groups * 8 + group * 8 + j, mask)
            other = tl.load(x + t * groups * 8 + group * 8 + 4 + j, mask)
            if FORMAT == 4:
                new_first = new_first + (codes.dp4a(low, lane, codes.bias(lane) + first[t]),)
                new_second = new_second + (codes.dp4a(high, other, codes.bias(other) + second[t]),)
            else:
                new_first = new_first + (codes.dp4a(low, lane, first[t]),)
                new_second = new_second + (codes.dp4a(high, other, second[t]),)
        first, second = new_first, new_second
    multiple, other_multiple = codes.multiples(choices)
    products = ()
    for t in tl.static_range(T):
        products = products + (first[t] * multiple + second[t] * other_multiple,)
    return products


@triton.jit
def _linear(
    matrix, x, scales, out, rows, columns,
    T: tl.constexpr, FORMAT: tl.constexpr, STRIPS: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A few strips of a matrix: out [T, rows] in its own type."""
    first = tl.program_id(0) * STRIPS
    size = strip_words(columns, FORMAT)
    row = tl.arange(0, STRIPS * _ROWS)
    last = (rows + 15) // 16 - 1 - first  # strip that there is
    offsets = tl.minimum(row // _ROWS, last) * size
    sums = row_sums(matrix + first.to(tl.int64) * size, offsets[None, :], columns, x, scales, T, FORMAT, GROUPS, WHOLE)
    for t in tl.static_range(T):
        tl.store(out + t * rows + first * _ROWS + row, sums[t], first * _ROWS + row < rows)


@triton.jit
def _inner(
    records, ids, x, scales, codes_out, scales_out, gate, up, rows, columns, top_k,
    FORMAT: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """32 numbers inside one expert, for one token that takes it: activation(gate x) * up x, rounded to int8."""
    group, choice = tl.program_id(0), tl.program_id(1)
    token = choice // top_k
    groups = (columns + 31) // 32
    address = tl.load(records + tl.load(ids + choice))
    if address == 0:
        return
    expert = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 64)
    size = strip_words(columns, FORMAT)
    strips = (rows + 15) // 16
    row = tl.arange(0, 64 if GATED else 32)
    strip = tl.minimum(group * 2 + row // _ROWS % 2, strips - 1)
    offsets = strip * size + (row // 32 * (up - gate) + gate if GATED else up)
    sums = row_sums(
        expert, offsets[None, :], columns, x + token * groups * 8, scales + token * groups,
        1, FORMAT, GROUPS, WHOLE,
    )[0]  # fmt: skip
    inner = group * 32 + tl.arange(0, 32)
    if GATED:
        left, right = tl.split(tl.trans(tl.reshape(sums, [2, 32])))
        hidden = activate(left, ACTIVATION) * right
    else:
        hidden = activate(sums, ACTIVATION)
    hidden = tl.where(inner < rows, hidden, 0.0)
    code, scale = codes_and_scales(hidden[None, :])
    at = choice * tl.num_programs(0) + group
    tl.store(codes_out + at * 32 + tl.arange(0, 32)[None, :], code.to(tl.int8))
    tl.store(scales_out + at + tl.arange(0, 1), scale)


@triton.jit
def _down(
    records, ids, x, scales, out, down, rows, columns,
    FORMAT: tl.constexpr, STRIPS: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A few strips of one expert's last matrix, for one token that takes it: out [choices, rows]."""
    first, choice = tl.program_id(0) * STRIPS, tl.program_id(1)
    groups = (columns + 31) // 32
    address = tl.load(records + tl.load(ids + choice))
    if address == 0:
        return
    expert = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 64)
    row = tl.arange(0, STRIPS * _ROWS)
    strip = tl.minimum(first + row // _ROWS, (rows + 15) // 16 - 1)
    offsets = down + strip * strip_words(columns, FORMAT)
    sums = row_sums(
        expert, offsets[None, :], columns, x + choice * groups * 8, scales + choice * groups, 1, FORMAT, GROUPS, WHOLE
    )
    tl.store(out + choice * rows + first * _ROWS + row, sums[0], first * _ROWS + row < rows)


@dataclass(frozen=True, slots=True)
class Blocking:
    """How a product is cut: strips of 16 rows to a program, groups of 32 columns at once, warps."""

    strips: int
    groups: int
    warps: int

    def whole(self, columns: int) -> bool:
        """Whether all runs of groups are full, and all tiles."""
        return columns % (32 * max(self.groups, 16)) == 0


def linear(x: Tensor, dtype: str, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] for up to eight tokens times a packed matrix [out, in]: float32 [T, out]."""
    codes, scales = quantise(x)
    return quantised_linear(codes, scales, dtype, packed, shape)


def quantised_linear(
    codes: Tensor, scales: Tensor, dtype: str, packed: Tensor, shape: tuple[int, int], out: Tensor | None = None
) -> Tensor:
    """The same of activations that are quantised."""
    rows, columns = shape
    tokens = len(codes)
    out = torch.empty(tokens, rows, dtype=torch.float32, device=codes.device) if out is None else out
    cut = blocking(columns, 64 if interpreted() else 1)  # which takes its time for a program, not for its numbers
    _linear[(triton.cdiv(rows, 16 * cut.strips),)](
        packed.view(torch.int32), codes.view(torch.int32), scales, out, rows, columns,
        tokens, FORMATS[dtype], cut.strips, cut.groups, cut.whole(columns), num_warps=cut.warps,
    )  # fmt: skip
    return out


def blocking(columns: int, strips: int = 1) -> Blocking:
    """Whatever the tokens: a sum is the same in any company. As many columns at once as fill whole rounds, if any do."""
    most = 64 if strips == 1 else 32
    groups = triton.next_power_of_2(max(16, min(most, -(-columns // 32))))
    while groups > 16 and columns % 512 == 0 and columns % (32 * groups):
        groups //= 2
    return Blocking(strips, groups, 8 if strips > 1 or groups == 64 else 4)


@dataclass(frozen=True, slots=True)
class Experts:
    """Experts on a device: `records` int64 [E], where each one's begins, and the offsets in it of its matrices, bytes.

    A record at 0 is elsewhere: its expert computes nothing. `gate` is None where there is none; `downs` are records of
    the last matrices where these lie apart.
    """

    dtype: str
    hidden_size: int
    intermediate_size: int
    activation: Activation
    records: Tensor
    gate: int | None
    up: int
    down: int
    downs: Tensor | None = None

    def __call__(self, normed: Normed, ids: Tensor, top_k: int, out: Tensor | None = None) -> Tensor:
        """What the chosen ones, ids [T * top_k] token by token, make of up to eight tokens: float32 [T * top_k, D]."""
        if out is None:
            out = normed.scales.new_empty(ids.numel(), self.hidden_size)
        downs = self.records if self.downs is None else self.downs
        if self.dtype in PLAIN:
            size = normed.states.element_size()
            offsets = None if self.gate is None else self.gate // size, self.up // size, self.down // size
            rows.experts(
                self.records, downs, ids, normed.states, top_k, offsets, self.intermediate_size, self.activation, out
            )  # fmt: skip
        else:
            self._packed(normed, downs, ids, top_k, out)
        return out

    def _packed(self, normed: Normed, downs: Tensor, ids: Tensor, top_k: int, out: Tensor) -> None:
        choices, inner, width = ids.numel(), self.intermediate_size, self.hidden_size
        groups = -(-inner // 32)
        hidden = normed.codes.new_empty(choices, groups * 32)
        scales = normed.scales.new_empty(choices, groups)
        first, second = blocking(width, strips=4), blocking(inner)
        _inner[groups, choices](
            self.records, ids, normed.codes.view(torch.int32), normed.scales, hidden, scales,
            (self.gate or 0) // 4, self.up // 4, inner, width, top_k,
            FORMATS[self.dtype], NUMBERS[self.activation], self.gate is not None, first.groups, first.whole(width),
            num_warps=first.warps,
        )  # fmt: skip
        _down[triton.cdiv(width, 16 * second.strips), choices](
            downs, ids, hidden.view(torch.int32), scales, out, self.down // 4, width, inner,
            FORMATS[self.dtype], second.strips, second.groups, second.whole(inner), num_warps=second.warps,
        )  # fmt: skip

"""Products of many tokens with packed weights, and through experts, on a GPU's tensor cores.

Codes of activations and of weights are small whole numbers, and so the product of 32 columns is exact, in fp16 with
float32 sums as in int8; scales meet it in float32. A result differs from the CPU's by the rounding of a few sums, and
depends on its token and its row alone: neither on what else is in a block nor on the size of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecli.formats import PLAIN
from moecli.formats.plain import torch_dtype
from moecli.kernels.gpu.activations import NUMBERS, activate
from moecli.kernels.gpu.decode import decode_q3, decode_q4, decode_q8
from moecli.kernels.gpu.launch import card
from moecli.kernels.gpu.quantise import codes_and_scales, place_in_group, quantise
from moecli.model.spec import Activation


@triton.jit
def _row_starts(row, rows, columns, FORMAT: tl.constexpr):
    """Where rows begin in a matrix, int64: in its numbers if they are plain, else the strip of 16, in 32-bit words."""
    strip, groups = tl.minimum(row // 16, (rows - 1) // 16).to(tl.int64), tl.cdiv(columns, 32)
    if FORMAT == "plain":
        return tl.minimum(row, rows - 1).to(tl.int64) * columns
    elif FORMAT == "q8":
        return strip * (groups * 136)
    elif FORMAT == "q4":
        return strip * (groups * 68 + tl.cdiv(groups, 8) * 8)
    else:
        return strip * (groups * 52 + tl.cdiv(groups, 8) * 8)


@triton.jit
def _pointer(weights, TYPE: tl.constexpr):
    """A matrix by numbers of another type; matrices begin at multiples of 16 bytes."""
    return tl.multiple_of(weights.to(tl.pointer_type(TYPE)), 16)


@triton.jit
def _book_group(lines, multiples, lane, FORMAT: tl.constexpr):
    """Code * multiple of 32 columns, fp16 [32, N], by pointers [1, N] to words: the first line, and their multiples."""
    if FORMAT == "q4":
        first = tl.load(lines + tl.arange(0, 4)[:, None] * 16)
    else:
        first = tl.load(lines + tl.arange(0, 2)[:, None] * 16)
    byte = tl.load(multiples) >> (lane % 4 * 8)[None, :] & 255
    byte = tl.broadcast_to(byte, first.shape)
    if FORMAT == "q4":
        return decode_q4(first, byte)
    else:
        second = tl.arange(0, 2)[:, None]
        last = tl.load(lines + (32 + second * 0))
        return decode_q3(first, last >> second * 4, byte)


@triton.jit
def _book_product(
    x, scales, weights, starts, lane, groups,
    FORMAT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`_product` with a codebook's rows: what 256 columns give meets their scale once."""
    words = _pointer(weights, tl.int32) + starts[None, :]
    lines, multiples = words + lane[None, :], words + lane[None, :] // 4
    row_scales = _pointer(weights, tl.float16) + (starts * 2 + lane)
    LINES: tl.constexpr = 64 if FORMAT == "q4" else 48  # words of a group
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for span in range(tl.cdiv(groups, 8)):
        tile, at = span // 2, span % 2
        width = tl.minimum(groups - tile * 16, 16)
        head = tile * (16 * (4 + LINES) + 16)
        bytes = head + tl.cdiv(width, 8) * 8  # of multiples, behind the scales
        scale = tl.load(row_scales + (head + at * 8) * 2).to(tl.float32)
        part = tl.zeros((TOKENS, ROWS), tl.float32)
        for group in range(at * 8, tl.minimum(width, at * 8 + 8)):
            a = tl.load(x + (tile * 16 + group) * 32)
            token_scale = tl.load(scales + (tile * 16 + group))
            b = _book_group(lines + (bytes + width * 4 + group * LINES), multiples + (bytes + group * 4), lane, FORMAT)
            part += tl.dot(a, b) * token_scale[:, None]
        sums += part * scale[None, :]
    return sums


@triton.jit
def _q8_product(
    x, scales, weights, starts, lane, groups,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`_product` with rows in q8."""
    words = _pointer(weights, tl.int32) + starts[None, :]
    lines = words + (8 + tl.arange(0, 8)[:, None] * 16 + lane[None, :])
    row_scales = _pointer(weights, tl.float16) + (starts * 2 + lane)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for group in range(groups):
        a = tl.load(x + group * 32)
        token_scale = tl.load(scales + group)
        scale = tl.load(row_scales + group * 272).to(tl.float32)
        b = decode_q8(tl.load(lines + group * 136))
        sums += tl.dot(a, b) * token_scale[:, None] * scale[None, :]
    return sums


@triton.jit
def _plain_product(
    x, token, weights, starts, columns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`_product` with plain rows."""
    column = tl.arange(0, 32)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    tokens = x + ((token * columns)[:, None] + column[None, :])
    numbers = _pointer(weights, x.dtype.element_ty) + (starts[None, :] + column[:, None])
    for first in range(0, columns, 32):
        inside = first + column < columns
        a = tl.load(tokens + first, inside[None, :], other=0.0)
        b = tl.load(numbers + first, inside[:, None], other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums


@triton.jit
def _product(
    x, scales, token, weights, starts, lane, columns,
    FORMAT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """float32 [TOKENS, ROWS]: rows `token` of x, which are codes with scales or plain numbers, times rows of a matrix.

    `weights` is the pointer that int64 `starts` [ROWS] count from, `lane` [ROWS] the place of a row in its strip.
    """
    groups = tl.cdiv(columns, 32)
    codes, token_scales = x + ((token * groups * 32)[:, None] + tl.arange(0, 32)[None, :]), scales + token * groups
    if FORMAT == "plain":
        return _plain_product(x, token, weights, starts, columns, TOKENS, ROWS)
    elif FORMAT == "q8":
        return _q8_product(codes, token_scales, weights, starts, lane, groups, TOKENS, ROWS)
    else:
        return _book_product(codes, token_scales, weights, starts, lane, groups, FORMAT, TOKENS, ROWS)


@triton.jit
def _linear(
    x, scales, weights, output, tokens, rows, columns,
    FORMAT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of tokens times a block of rows of one matrix."""
    block, part = tl.swizzle2d(tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1), 8)
    token = (block * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    row = part * ROWS + tl.arange(0, ROWS)
    starts = _row_starts(row, rows, columns, FORMAT)
    read = tl.minimum(token, tokens - 1)
    lane = tl.arange(0, ROWS) % 16
    sums = _product(x, scales, read, weights, starts, lane, columns, FORMAT, TOKENS, ROWS)
    inside = (token < tokens)[:, None] & (row < rows)[None, :]
    tl.store(output + (token[:, None] * rows + row[None, :]), sums.to(output.dtype.element_ty), inside)


@triton.jit
def _block_of(program, first, experts, TOKENS: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert of a program, or `experts` or more where there is no work; its first assignment, and the end of all.

    Each expert's assignments, `first` [experts + 1] to the next, are blocks of TOKENS.
    """
    each = tl.arange(0, EXPERTS)
    begin = tl.load(first + each, each < experts, other=0)
    end = tl.load(first + 1 + each, each < experts, other=0)
    blocks = (end - begin + TOKENS - 1) // TOKENS
    expert = tl.sum((tl.cumsum(blocks, 0) <= program).to(tl.int32))
    before = tl.sum(tl.where(each < expert, blocks, 0))
    mine = each == expert
    start = tl.sum(tl.where(mine, begin, 0)) + (program - before) * TOKENS
    return expert, start, tl.sum(tl.where(mine, end, 0))


@triton.jit
def _inner(
    x, scales, order, top_k, first, experts, addresses, hidden, hidden_scales, rows, columns,
    FORMAT: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """activation(gate x) * up x for a block of an expert's assignments: ROWS columns of `hidden`, as down wants them.

    Rows of gate and of up are one block of rows, gate's first.
    """
    block, part = tl.swizzle2d(tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1), 8)
    expert, start, end = _block_of(block, first, experts, TOKENS, EXPERTS)
    if expert >= experts:
        return
    place = (start + tl.arange(0, TOKENS)).to(tl.int64)
    token = tl.load(order + tl.minimum(place, end - 1)).to(tl.int64) // top_k
    MATRICES: tl.constexpr = 2 if GATED else 1
    address = tl.load(addresses + expert * (MATRICES + 1))
    along = tl.arange(0, MATRICES * ROWS)
    row = part * ROWS + along % ROWS
    starts = _row_starts(row, rows, columns, FORMAT)
    if GATED:
        BYTES: tl.constexpr = x.dtype.element_ty.primitive_bitwidth // 8 if FORMAT == "plain" else 4
        starts += along // ROWS * ((tl.load(addresses + expert * 3 + 1) - address) // BYTES)
        if FORMAT != "plain":
            starts = tl.max_constancy(tl.multiple_of(starts, 4), 16)
    weights = address.to(tl.pointer_type(tl.uint8))
    sums = _product(x, scales, token, weights, starts, along % 16, columns, FORMAT, TOKENS, MATRICES * ROWS)
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(sums, (TOKENS, 2, ROWS)), (0, 2, 1)))
        made = activate(gate, ACTIVATION) * up
    else:
        made = activate(sums, ACTIVATION)
    column = part * ROWS + tl.arange(0, ROWS)
    if FORMAT == "plain":
        inside = (place < end)[:, None] & (column < rows)[None, :]
        tl.store(hidden + (place[:, None] * rows + column[None, :]), made.to(hidden.dtype.element_ty), inside)
    else:
        GROUPS: tl.constexpr = ROWS // 32
        groups = tl.cdiv(rows, 32)
        made = tl.where((column < rows)[None, :], made, 0.0)
        codes, scale = codes_and_scales(tl.reshape(made, (TOKENS * GROUPS, 32)))
        each = tl.arange(0, TOKENS * GROUPS)
        its_place, group = (start + each // GROUPS).to(tl.int64), part * GROUPS + each % GROUPS
        inside = (its_place < end) & (group < groups)
        its_group = its_place * groups + group
        tl.store(hidden_scales + its_group, scale, inside)
        target = its_group[:, None] * 32 + place_in_group(tl.arange(0, 32))[None, :]
        tl.store(hidden + target, codes.to(hidden.dtype.element_ty), inside[:, None])


@triton.jit
def _down(
    hidden, hidden_scales, order, first, experts, addresses, output, rows, columns,
    FORMAT: tl.constexpr, MATRICES: tl.constexpr, SCATTERED: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """down times a block of an expert's assignments: float32, in their order, or each in the row that `order` says."""
    block, part = tl.swizzle2d(tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1), 8)
    expert, start, end = _block_of(block, first, experts, TOKENS, EXPERTS)
    if expert >= experts:
        return
    place = (start + tl.arange(0, TOKENS)).to(tl.int64)
    read = tl.minimum(place, end - 1)
    row = part * ROWS + tl.arange(0, ROWS)
    starts = _row_starts(row, rows, columns, FORMAT)
    address = tl.load(addresses + expert * MATRICES + MATRICES - 1)
    weights = address.to(tl.pointer_type(tl.uint8))
    sums = _product(
        hidden, hidden_scales, read, weights, starts, tl.arange(0, ROWS) % 16, columns, FORMAT, TOKENS, ROWS
    )
    target = tl.load(order + read).to(tl.int64) if SCATTERED else place
    inside = (place < end)[:, None] & (row < rows)[None, :]
    tl.store(output + (target[:, None] * rows + row[None, :]), sums, inside)


@triton.jit
def _combine(
    outputs, topk_ids, topk_weights, sums, columns, TOP_K: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr
):
    """A token's weighted sum of what its experts made of it, outputs [T, TOP_K, D], by the experts' numbers."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.arange(0, RANKS)
    ids = tl.load(topk_ids + token * TOP_K + rank, rank < TOP_K, other=2147483647).to(tl.int32)
    weights = tl.load(topk_weights + token * TOP_K + rank, rank < TOP_K, other=0.0).to(tl.float32)
    turns = tl.sum((ids[None, :] < ids[:, None]).to(tl.int32), 1)  # when each is added
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in tl.static_range(TOP_K):
        mine = turns == turn
        which = tl.sum(tl.where(mine, rank, 0))
        part = tl.load(outputs + (token * TOP_K + which) * columns + column, column < columns, other=0.0)
        total += part * tl.sum(tl.where(mine, weights, 0.0))
    tl.store(sums + token * columns + column, total, column < columns)


_COLUMNS = 1024  # of a program that adds


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a product is cut: tokens and rows of a program, its warps, and how many steps ahead it loads."""

    tokens: int
    rows: int = 64
    warps: int = 4
    stages: int = 3

    @property
    def options(self) -> dict[str, int]:
        """As a launch takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def blocks_for(tokens: int, device: torch.device) -> Blocks:
    """Of the sizes there are, the least that takes so many tokens at once; else the largest.

    Before Ampere Triton multiplies without tensor cores, in registers that hold half as much.
    """
    sizes = (16, 32) if card(device).capability < (8, 0) else (16, 32, 64)
    return Blocks(next((size for size in sizes if size >= tokens), sizes[-1]))


def linear(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int], output: torch.dtype | None = None) -> Tensor:
    """x [T, in] times the matrix [out, in], `shape`, by its bytes: [T, out] in x's precision, or as `output` says."""
    rows, columns = shape
    codes, scales = _input(dtype, x)
    made = torch.empty(len(x), rows, dtype=output or x.dtype, device=x.device)
    if made.numel():
        cut = blocks_for(len(x), x.device)
        with torch.cuda.device_of(x):
            _linear[triton.cdiv(len(x), cut.tokens), triton.cdiv(rows, cut.rows)](
                codes, scales, packed, made, len(x), rows, columns,
                FORMAT=_kind(dtype), TOKENS=cut.tokens, ROWS=cut.rows, **cut.options,
            )  # fmt: skip
    return made


def experts(
    dtype: str,
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    addresses: Tensor,
    intermediate_size: int,
    activation: Activation,
) -> Tensor:
    """The weighted sum of what each token's experts make of it: x [T, D] to float32 [T, D], all of it on the device.

    topk_ids and topk_weights are [T, A]; addresses, int64 [E, 3], say where gate, up and down of each expert lie on
    the device, or, [E, 2], up and down of experts without a gate. Sums are in the order of the experts' numbers.
    """
    tokens, top_k = topk_ids.shape
    numbers, order = topk_ids.flatten().sort(stable=True)
    first = torch.searchsorted(numbers, torch.arange(len(addresses) + 1, device=x.device))
    made = _outputs(dtype, x, order, first, addresses, intermediate_size, activation, top_k)
    sums = torch.empty(tokens, x.shape[1], dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _combine[tokens, triton.cdiv(x.shape[1], _COLUMNS)](
            made, topk_ids.contiguous(), topk_weights.contiguous(), sums, x.shape[1],
            TOP_K=top_k, RANKS=triton.next_power_of_2(top_k), BLOCK=_COLUMNS, enable_fp_fusion=False,
        )  # fmt: skip
    return sums


def expert_outputs(
    dtype: str,
    x: Tensor,
    tokens: Tensor,
    first: Tensor,
    addresses: Tensor,
    intermediate_size: int,
    activation: Activation,
) -> Tensor:
    """What some experts make of their tokens, rows `tokens` [n] of x [T, D]: float32 [n, D], in the order of `tokens`.

    Those of an expert lie together: from `first`, int [G + 1], to the next. `addresses` are as `experts` takes them.
    """
    return _outputs(dtype, x, tokens, first, addresses, intermediate_size, activation)


def _outputs(
    dtype: str,
    x: Tensor,
    order: Tensor,
    first: Tensor,
    addresses: Tensor,
    intermediate_size: int,
    activation: Activation,
    top_k: int = 0,
) -> Tensor:
    """Rows order // top_k of x through their experts; each result goes to row `order`. Without top_k see above."""
    count, hidden_size, (number, matrices) = len(order), x.shape[1], addresses.shape
    output = torch.empty(count, hidden_size, dtype=torch.float32, device=x.device)
    if not count:
        return output
    codes, scales = _input(dtype, x)
    groups = -(-intermediate_size // 32)
    hidden = codes.new_empty(count, intermediate_size if dtype in PLAIN else groups * 32)
    hidden_scales = scales.new_empty(count, groups)
    cut = blocks_for(count // number, x.device)
    blocks = count // cut.tokens + min(number, count)  # at most
    size = {"FORMAT": _kind(dtype), "TOKENS": cut.tokens, "EXPERTS": triton.next_power_of_2(number), **cut.options}
    half = cut.rows // (matrices - 1)
    with torch.cuda.device_of(x):
        _inner[blocks, triton.cdiv(intermediate_size, half)](
            codes, scales, order, top_k or 1, first, number, addresses, hidden, hidden_scales,
            intermediate_size, hidden_size,
            ACTIVATION=NUMBERS[activation], GATED=matrices == 3, ROWS=half, **size,
        )  # fmt: skip
        _down[blocks, triton.cdiv(hidden_size, cut.rows)](
            hidden, hidden_scales, order, first, number, addresses, output, hidden_size, intermediate_size,
            MATRICES=matrices, SCATTERED=top_k > 0, ROWS=cut.rows, **size,
        )  # fmt: skip
    return output


def _kind(dtype: str) -> str:
    return "plain" if dtype in PLAIN else dtype


def _input(dtype: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as weights of a format meet it: codes and scales, or numbers and no scales."""
    if dtype in PLAIN:
        return x.to(torch_dtype(dtype)).contiguous(), x.new_empty(0, dtype=torch.float32)
    return quantise(x, for_prompts=True)

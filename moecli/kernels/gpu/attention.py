"""Causal attention over a cache by Triton: grouped-query, and over latents; for a few queries or a prompt.

One kernel serves both. The queries of all heads that share keys, token after token, are the rows of its tiles; a tile
meets a block of keys after the other and keeps a running softmax in float32 (arXiv 2205.14135). Where there are too few
tiles to fill the card, the keys that a tile sees are dealt to several programs, whose results a second kernel adds up.
How many is fixed by shapes alone, and everything that changes from step to step is read from the device: a captured
CUDA graph serves every length of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecli.kernels.gpu.functions import device_function
from moecli.kernels.gpu.launch import Card, card, on

_LOG2E = tl.constexpr(1.4426950408889634)  # powers of two are what the hardware has
_LEAST = tl.constexpr(-1e30)  # a maximum before any score: finite, so that no difference of two is NaN
_MOST_SPLITS = 128


@device_function
def _tanh(x):
    return 1 - 2 / (1 + tl.exp2(x * _LOG2E * 2))


@device_function
def _meet(
    mixed, sums, most, q, q_rest, k_ptr, v_ptr, k_row, v_row, begin, end, position, scale, softcap, window,
    WIDTH: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, KEYS: tl.constexpr,
    SHARED: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The running softmax of a tile after the keys in rows `begin` to `end`; unless MASKED every query sees them all.

    `mixed` [M, VALUE] are values weighted by 2 ** (score - most), `sums` [M] the sums of these weights.
    """
    column = tl.arange(0, BLOCK)
    key = tl.arange(0, KEYS)
    for block in range(begin, end, KEYS):
        row = block + key
        k_block = k_ptr + tl.cast(block, tl.int64) * k_row + key[:, None] * k_row
        in_text = (row < end)[:, None] if MASKED else tl.full((KEYS, 1), True, tl.int1)
        k = tl.load(k_block + column[None, :], mask=in_text & (column < WIDTH)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if REST > 0:
            rest = tl.arange(0, REST_BLOCK)
            k_rest = tl.load(k_block + WIDTH + rest[None, :], mask=in_text & (rest < REST)[None, :], other=0.0)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        if SOFTCAP:
            scores = _tanh(scores * (scale / softcap)) * (softcap * _LOG2E)
        else:
            scores *= scale * _LOG2E
        if MASKED:
            visible = (row[None, :] <= position[:, None]) & (row < end)[None, :]
            if WINDOW:
                visible &= row[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        faded = tl.exp2(most - highest)
        sums = sums * faded + tl.sum(weights, 1)
        mixed *= faded[:, None]
        if SHARED:
            mixed = tl.dot(weights.to(k.dtype), k, mixed, input_precision="ieee")
        else:
            value = tl.arange(0, VALUE_BLOCK)
            v_block = v_ptr + tl.cast(block, tl.int64) * v_row + key[:, None] * v_row + value[None, :]
            v = tl.load(v_block, mask=in_text & (value < VALUE)[None, :], other=0.0)
            mixed = tl.dot(weights.to(v.dtype), v, mixed, input_precision="ieee")
        most = highest
    return mixed, sums, most


@triton.jit
def _attend(
    q_ptr, q_rest_ptr, k_ptr, v_ptr, sinks_ptr, place_ptr, out_ptr, sums_ptr, most_ptr,
    tokens, q_token, q_head, rest_token, rest_head, k_head, k_row, v_head, v_row, scale, softcap, window,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, VALUE: tl.constexpr,
    BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SHARED: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One tile of queries over one share of the keys that it sees: grid (tiles, shares, kv heads)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # those that see most begin first
    kv_head = tl.program_id(2)
    heads = tl.num_programs(2) * GROUP
    own = tl.load(place_ptr) - tl.load(place_ptr + 1)  # the row of the first query's own key
    place = tile * ROWS + tl.arange(0, ROWS)
    token, head = place // GROUP, kv_head * GROUP + place % GROUP
    valid = token < tokens
    position = own + token
    first = own + tile * ROWS // GROUP  # position of the first query, and of the last
    last = own + tl.minimum((tile * ROWS + ROWS - 1) // GROUP, tokens - 1)

    begin, end = 0, last + 1
    if WINDOW:
        begin = tl.maximum(first - window + 1, 0) // KEYS * KEYS
    index = tl.cast(token, tl.int64) * heads + head
    if SPLIT:
        splits = tl.num_programs(1)
        index += tl.program_id(1) * tl.cast(tokens, tl.int64) * heads
        share = tl.cdiv(tl.cdiv(end - begin, splits), KEYS) * KEYS
        begin += tl.program_id(1) * share
        if begin >= end:
            tl.store(sums_ptr + index, tl.zeros((ROWS,), tl.float32), mask=valid)
            return
        end = tl.minimum(begin + share, end)

    column, rest = tl.arange(0, BLOCK), tl.arange(0, REST_BLOCK)
    q_at = tl.cast(token, tl.int64) * q_token + head * q_head
    q = tl.load(q_ptr + q_at[:, None] + column[None, :], mask=valid[:, None] & (column < WIDTH)[None, :], other=0.0)
    q_rest = q
    if REST > 0:
        rest_at = tl.cast(token, tl.int64) * rest_token + head * rest_head
        q_rest = tl.load(
            q_rest_ptr + rest_at[:, None] + rest[None, :], mask=valid[:, None] & (rest < REST)[None, :], other=0.0
        )
    k_ptr += tl.cast(kv_head, tl.int64) * k_head
    v_ptr += tl.cast(kv_head, tl.int64) * v_head

    # Blocks that the window cuts for some query, those that every query sees, and those that the diagonal cuts.
    mixed = tl.zeros((ROWS, VALUE_BLOCK), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    most = tl.full((ROWS,), _LEAST, tl.float32)
    whole = begin
    if WINDOW:
        whole = tl.minimum(tl.maximum(tl.cdiv(last - window + 1, KEYS) * KEYS, begin), end)
        mixed, sums, most = _meet(
            mixed, sums, most, q, q_rest, k_ptr, v_ptr, k_row, v_row, begin, whole, position, scale, softcap, window,
            WIDTH, REST, VALUE, BLOCK, REST_BLOCK, VALUE_BLOCK, KEYS, SHARED, SOFTCAP, WINDOW, True,
        )  # fmt: skip
    diagonal = tl.minimum(tl.maximum((first + 1) // KEYS * KEYS, whole), end)
    mixed, sums, most = _meet(
        mixed, sums, most, q, q_rest, k_ptr, v_ptr, k_row, v_row, whole, diagonal, position, scale, softcap, window,
        WIDTH, REST, VALUE, BLOCK, REST_BLOCK, VALUE_BLOCK, KEYS, SHARED, SOFTCAP, WINDOW, False,
    )  # fmt: skip
    mixed, sums, most = _meet(
        mixed, sums, most, q, q_rest, k_ptr, v_ptr, k_row, v_row, diagonal, end, position, scale, softcap, window,
        WIDTH, REST, VALUE, BLOCK, REST_BLOCK, VALUE_BLOCK, KEYS, SHARED, SOFTCAP, WINDOW, True,
    )  # fmt: skip

    if SPLIT:
        tl.store(sums_ptr + index, sums, mask=valid)
        tl.store(most_ptr + index, most, mask=valid)
    else:
        if SINKS:
            sink = tl.load(sinks_ptr + head, mask=valid, other=0.0).to(tl.float32) * _LOG2E
            highest = tl.maximum(most, sink)
            faded = tl.exp2(most - highest)
            sums = sums * faded + tl.exp2(sink - highest)
            mixed *= faded[:, None]
        mixed /= sums[:, None]
    value = tl.arange(0, VALUE_BLOCK)
    tl.store(
        out_ptr + index[:, None] * VALUE + value[None, :],
        mixed.to(out_ptr.dtype.element_ty),
        mask=valid[:, None] & (value < VALUE)[None, :],
    )


@triton.jit
def _add_up(
    mixed_ptr, sums_ptr, most_ptr, sinks_ptr, out_ptr, heads,
    VALUE: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """What the shares of the keys make together: grid (queries of all heads, blocks of columns)."""
    query = tl.program_id(0)
    index = tl.arange(0, SPLITS) * tl.cast(tl.num_programs(0), tl.int64) + query
    sums = tl.load(sums_ptr + index)
    some = sums != 0  # shares without a key wrote nothing else
    most = tl.load(most_ptr + index, mask=some, other=_LEAST)
    highest = tl.max(most, 0)
    if SINKS:
        sink = tl.load(sinks_ptr + query % heads).to(tl.float32) * _LOG2E
        highest = tl.maximum(highest, sink)
    weights = tl.exp2(most - highest)
    total = tl.sum(weights * sums, 0)
    if SINKS:
        total += tl.exp2(sink - highest)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < VALUE
    mixed = tl.load(
        mixed_ptr + index[:, None] * VALUE + column[None, :], mask=some[:, None] & inside[None, :], other=0.0
    )
    result = tl.sum(mixed * weights[:, None], 0) / total
    tl.store(out_ptr + tl.cast(query, tl.int64) * VALUE + column, result.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Widths:
    """Numbers in a query and a key, in two parts, and in a value; `shared`: values are the first part of keys."""

    first: int
    rest: int
    value: int
    shared: bool = False

    @property
    def blocks(self) -> tuple[int, int, int]:
        """The powers of two, as products want them, that hold each."""
        return _block(self.first), _block(self.rest), _block(self.value)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a call is cut: rows of a tile, keys of a block, programs that share a tile's keys, warps and stages."""

    rows: int
    keys: int
    splits: int
    warps: int
    stages: int


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of q [T, H, d] over k [K, rows, d] and v [K, rows, w]: `out` [T, H, w], made if it is not given.

    H / K heads after one another share keys. `place`, int32 [2] on the device: the positions of query 0 and of row 0.
    A query sees the keys up to its own position, which lie in rows, and of these the last `window`. Scores are bent to
    `softcap` * tanh(score / `softcap`). `sinks` [H] are logits that take part in the softmax and have no value.
    ValueError if shapes or types do not agree. Nothing waits for the device: a CUDA graph can hold the call.
    """
    heads, dim = q.shape[1:]
    kv_heads, rows, value = v.shape
    if k.shape != (kv_heads, rows, dim) or heads % kv_heads:
        raise ValueError(f"{heads} heads of {dim} numbers do not meet keys {tuple(k.shape)}, values {tuple(v.shape)}")
    first = _first_part(dim)
    widths = Widths(first, dim - first, value)
    return _call((q[..., :first], q[..., first:]), k, v, place, widths, scale, window, softcap, sinks, out)


def attend_latents(
    q_latent: Tensor,
    q_rope: Tensor,
    latents: Tensor,
    place: Tensor,
    *,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The same of q [T, H, rank] and [T, H, rope] over latents [rows, rank + rope]: `out` [T, H, rank].

    All heads share the latents: the keys are all of one, the values its first `rank` numbers.
    """
    tokens, heads, rank = q_latent.shape
    rope = q_rope.shape[-1]
    if q_rope.shape != (tokens, heads, rope) or latents.shape[1:] != (rank + rope,):
        raise ValueError(
            f"queries {tuple(q_latent.shape)} and {tuple(q_rope.shape)} do not meet latents {tuple(latents.shape)}"
        )
    widths = Widths(rank, rope, rank, shared=True)
    keys = latents[None]
    return _call((q_latent, q_rope), keys, keys, place, widths, scale, window, None, None, out)


def _call(
    q: tuple[Tensor, Tensor],
    k: Tensor,
    v: Tensor,
    place: Tensor,
    widths: Widths,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    tokens, heads, _ = q[0].shape
    kv_heads, rows, _ = k.shape
    if any(each.dtype != k.dtype or each.stride(-1) != 1 for each in (*q, k, v)):
        raise ValueError("queries, keys and values are of different types, or their numbers lie apart")
    if out is None:
        out = k.new_empty(tokens, heads, widths.value)
    elif out.shape != (tokens, heads, widths.value) or not out.is_contiguous():
        raise ValueError(f"the result {(tokens, heads, widths.value)} does not go to {tuple(out.shape)}")
    if tokens == 0:
        return out
    group = heads // kv_heads
    tiling = choose_tiling(tokens, group, kv_heads, rows, widths, k.element_size(), card(k.device))
    split = tiling.splits > 1
    mixed, sums, most = out, out, out
    if split:
        mixed = torch.empty(tiling.splits, tokens, heads, widths.value, dtype=torch.float32, device=k.device)
        sums, most = torch.empty(2, tiling.splits, tokens, heads, dtype=torch.float32, device=k.device)
    grid = (triton.cdiv(tokens * group, tiling.rows), tiling.splits, kv_heads)
    with on(k.device):
        _attend[grid](
            *q, k, v, sinks if sinks is not None else place, place, mixed, sums, most,
            tokens, q[0].stride(0), q[0].stride(1), q[1].stride(0), q[1].stride(1),
            k.stride(0), k.stride(1), v.stride(0), v.stride(1), scale, softcap or 0.0, window or 0,
            **constants(group, widths, tiling, softcap is not None, window is not None, sinks is not None),
        )  # fmt: skip
        if split:
            columns = min(_block(widths.value), 8192 // tiling.splits)
            _add_up[tokens * heads, triton.cdiv(widths.value, columns)](
                mixed, sums, most, sinks if sinks is not None else place, out, heads,
                VALUE=widths.value, COLUMNS=columns, SPLITS=tiling.splits, SINKS=sinks is not None,
            )  # fmt: skip
    return out


def constants(group: int, widths: Widths, tiling: Tiling, softcap: bool, window: bool, sinks: bool) -> dict[str, Any]:
    """What the kernel is compiled for."""
    block, rest, value = widths.blocks
    return {
        "GROUP": group,
        "WIDTH": widths.first,
        "REST": widths.rest,
        "VALUE": widths.value,
        "BLOCK": block,
        "REST_BLOCK": rest,
        "VALUE_BLOCK": value,
        "ROWS": tiling.rows,
        "KEYS": tiling.keys,
        "SHARED": widths.shared,
        "SOFTCAP": softcap,
        "WINDOW": window,
        "SINKS": sinks,
        "SPLIT": tiling.splits > 1,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


def choose_tiling(
    tokens: int, group: int, kv_heads: int, capacity: int, widths: Widths, size: int, card: Card
) -> Tiling:
    """By shapes and the card alone: `size` bytes a number, caches of `capacity` rows.

    Widest that keep all of a tile in registers, as compiled for each kind of card.
    """
    queries = tokens * group
    first, rest, value = widths.blocks
    key = first + (rest if widths.rest else 0)
    rows = min(max(16, triton.next_power_of_2(queries)), 32 if widths.shared else 64)
    if not card.has_tensor_cores(size):
        rows, keys, warps = 16, 16, 4
    elif widths.shared:
        keys, warps = 32, 8
    else:
        if 4 * triton.cdiv(queries, 128) * kv_heads >= 3 * card.processors:
            rows = 128
        crowded = key > 64 and (rows == 64 or (rows == 128 and not card.has_warp_groups))
        keys, warps = 32 if crowded else 64, 8 if rows == 128 else 4
    blocks = triton.cdiv(queries, rows)
    tiles = blocks * kv_heads
    full = card.processors if blocks == 1 else card.processors // 2  # then shares cost more than they bring
    shares = min(2 * card.processors // tiles, triton.cdiv(capacity, keys), _MOST_SPLITS)
    splits = 1 << (shares.bit_length() - 1) if tiles <= full else 1
    buffers = 3 if rows >= 64 and card.has_warp_groups else 2  # of keys and values, where three stages overlap
    deep = rows * (key + keys) + buffers * keys * (key + (0 if widths.shared else value))
    return Tiling(rows, keys, splits, warps, 3 if deep * size <= card.shared else 2)


def _first_part(dim: int) -> int:
    """Of a head that is no power of two: so many numbers are multiplied first if that saves arithmetic, else all."""
    half = 1 << (dim.bit_length() - 1)
    return half if half + _block(dim - half) < _block(dim) else dim


def _block(width: int) -> int:
    return int(max(16, triton.next_power_of_2(width)))

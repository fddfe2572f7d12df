"""What stands between projections and attention, in one launch: norms, rotation, and the cache's new rows, by Triton.

Numbers are rounded where the operators of torch round them in `moecli/engine/attention.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecli.kernels.gpu.launch import on
from moecli.model.spec import QkNorm

_QK_NORMS = {QkNorm.NONE: 0, QkNorm.FULL: 1, QkNorm.HEAD: 2, QkNorm.ROTATED_HEAD: 3}
_FULL, _HEAD, _ROTATED_HEAD = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _as(x, like):
    """x in float32, rounded to the type that `like` points to."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _inverse_rms(x, count, eps):
    return tl.rsqrt(tl.sum(x * x, 0) / count + eps)


@triton.jit
def _partner(column, DIMS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The column that turns together with each of the first DIMS."""
    if INTERLEAVED:
        partner = column ^ 1
    else:
        partner = tl.where(column < DIMS // 2, column + DIMS // 2, column - DIMS // 2)
    return tl.where(column < DIMS, partner, column)


@triton.jit
def _rotate(x, partner, cos_ptr, sin_ptr, column, DIMS: tl.constexpr):
    """x, a head in float32, turned by a row of the tables."""
    turns = column < DIMS
    cos = tl.load(cos_ptr + column, mask=turns, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + column, mask=turns, other=0.0).to(tl.float32)
    return _as(_as(x * cos, cos_ptr) + partner * sin, cos_ptr)


@triton.jit
def _append(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, place_ptr, q_ptr, k_ptr, v_ptr,
    heads, kv_heads, qkv_token, k_head, k_row, v_head, v_row, clip, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr, FULL_BLOCK: tl.constexpr, ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """One head of one token: grid (tokens, heads of queries, keys and values)."""
    token, head = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    start = tl.load(place_ptr)
    row = start - tl.load(place_ptr + 1) + token
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    whole = qkv_ptr + token * qkv_token
    source = whole + head * DIM
    x = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
    if head >= heads + kv_heads:
        if CLIP:
            x = tl.clamp(x, -clip, clip)
        value = v_ptr + (head - heads - kv_heads) * tl.cast(v_head, tl.int64) + row * v_row
        tl.store(value + column, x.to(v_ptr.dtype.element_ty), mask=inside)
    else:
        is_query = head < heads
        other = _partner(column, ROTARY, INTERLEAVED)
        partner = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
        norm_ptr = q_norm_ptr
        if not is_query:
            norm_ptr = k_norm_ptr
        if NORM == _FULL:  # each head sums up its whole projection by itself
            wide = tl.arange(0, FULL_BLOCK)
            first = tl.where(is_query, 0, heads * DIM)
            count = tl.where(is_query, heads, kv_heads) * DIM
            projection = tl.load(whole + first + wide, mask=wide < count, other=0.0).to(tl.float32)
            inverse = _inverse_rms(projection, count, eps)
            norm_ptr += head * DIM - first
            x = _as(x * inverse * tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32), q_ptr)
            partner = _as(partner * inverse * tl.load(norm_ptr + other, mask=inside, other=0.0).to(tl.float32), q_ptr)
        if NORM == _HEAD:
            inverse = _inverse_rms(x, DIM, eps)
            x = _as(_as(x * inverse, q_ptr) * tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32), q_ptr)
            partner = _as(
                _as(partner * inverse, q_ptr) * tl.load(norm_ptr + other, mask=inside, other=0.0).to(tl.float32), q_ptr
            )
        if CLIP:
            x, partner = tl.clamp(x, -clip, clip), tl.clamp(partner, -clip, clip)
        if ROTARY > 0:
            angles = (start + token) * ROTARY
            x = _rotate(x, partner, cos_ptr + angles, sin_ptr + angles, column, ROTARY)
        if NORM == _ROTATED_HEAD:
            inverse = _inverse_rms(x, DIM, eps)
            x = _as(x * inverse, q_ptr) * tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
        if is_query:
            target = q_ptr + (token * heads + head) * DIM
        else:
            target = k_ptr + (head - heads) * tl.cast(k_head, tl.int64) + row * k_row
        tl.store(target + column, x.to(q_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _append_latents(
    low_ptr, norm_ptr, q_ptr, cos_ptr, sin_ptr, place_ptr, out_ptr, latents_ptr,
    low_token, q_token, q_head, out_token, out_head, latents_row, eps,
    RANK: tl.constexpr, ROTARY: tl.constexpr, BLOCK: tl.constexpr, ROTARY_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """One query head of one token, or last its latent: grid (tokens, heads + 1)."""
    token, head = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    start = tl.load(place_ptr)
    row = start - tl.load(place_ptr + 1) + token
    source, target = q_ptr + token * q_token + head * q_head, out_ptr + token * out_token + head * out_head
    if head == tl.num_programs(1) - 1:
        source, target = low_ptr + token * low_token, latents_ptr + row * latents_row
        column = tl.arange(0, BLOCK)
        inside = column < RANK
        x = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
        x *= _inverse_rms(x, RANK, eps) * weight
        tl.store(target + column, x.to(out_ptr.dtype.element_ty), mask=inside)
        source += RANK
        target += RANK
    column = tl.arange(0, ROTARY_BLOCK)
    inside = column < ROTARY
    x = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(source + _partner(column, ROTARY, INTERLEAVED), mask=inside, other=0.0).to(tl.float32)
    angles = (start + token) * ROTARY
    x = _rotate(x, partner, cos_ptr + angles, sin_ptr + angles, column, ROTARY)
    tl.debug_barrier()  # queries may be rotated where they lie
    tl.store(target + column, x.to(out_ptr.dtype.element_ty), mask=inside)


def append(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    place: Tensor,
    *,
    tables: tuple[Tensor, Tensor],
    interleaved: bool = False,
    clip: float | None = None,
    qk_norm: QkNorm = QkNorm.NONE,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Put the keys and values of qkv [T, (H + 2 K) * d] into a cache; its queries, normed and rotated: `out` [T, H, d].

    `keys` and `values` [K, rows, d] are a layer's buffers; `place`, int32 [2] on the device, the positions of token 0
    and of row 0. `tables` are cosines and sines [positions, dims] of what rotates, as `RotaryEmbedding` makes them; of
    no columns where nothing does. `clip` bounds all three, before the rotation and after other norms than those that
    come after it. `q_norm` and `k_norm` are the weights of `qk_norm`. ValueError if shapes or types do not agree.
    """
    kv_heads, _, dim = keys.shape
    tokens, heads = len(qkv), qkv.shape[1] // dim - 2 * kv_heads
    if qkv.shape[1] != (heads + 2 * kv_heads) * dim or heads < 1 or values.shape != keys.shape:
        raise ValueError(f"projections {tuple(qkv.shape)} do not meet keys {tuple(keys.shape)}")
    cos, sin = tables
    norms = [each for each in (q_norm, k_norm) if each is not None]
    if any(each.dtype != qkv.dtype or each.stride(-1) != 1 for each in (qkv, keys, values, cos, sin, *norms)):
        raise ValueError("projections, cache, tables and norms are of different types, or their numbers lie apart")
    if len(norms) != (0 if qk_norm is QkNorm.NONE else 2):
        raise ValueError(f"{len(norms)} weights do not make a norm that is {qk_norm.value}")
    if out is None:
        out = qkv.new_empty(tokens, heads, dim)
    if tokens == 0:
        return out
    with on(qkv.device):
        _append[tokens, heads + 2 * kv_heads](
            qkv, q_norm if q_norm is not None else qkv, k_norm if k_norm is not None else qkv, cos, sin, place,
            out, keys, values, heads, kv_heads, qkv.stride(0), keys.stride(0), keys.stride(1), values.stride(0),
            values.stride(1), _rounded(clip, qkv), eps,
            DIM=dim, BLOCK=triton.next_power_of_2(dim), FULL_BLOCK=triton.next_power_of_2(heads * dim),
            ROTARY=cos.shape[1], INTERLEAVED=interleaved, NORM=_QK_NORMS[qk_norm], CLIP=clip is not None,
            num_warps=4 if qk_norm is QkNorm.FULL else 1,
        )  # fmt: skip
    return out


def append_latents(
    low: Tensor,
    q_rope: Tensor,
    latents: Tensor,
    place: Tensor,
    *,
    norm: Tensor,
    eps: float,
    tables: tuple[Tensor, Tensor],
    interleaved: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Put the latents of low [T, rank + rope] into a cache; the rotated q_rope [T, H, rope]: `out` of that shape.

    `latents` [rows, rank + rope] take what is normed by the weights `norm` [rank], and the rotated key. `out` may be
    `q_rope` itself, and both may be views of whole queries. `place` and `tables` as for `append`.
    ValueError if shapes or types do not agree.
    """
    tokens, heads, rope = q_rope.shape
    cos, sin = tables
    rank = len(norm)
    if low.shape != (tokens, rank + rope) or latents.shape[1:] != low.shape[1:] or cos.shape[1] != rope:
        raise ValueError(
            f"projections {tuple(low.shape)} and queries {tuple(q_rope.shape)} do not meet latents "
            f"{tuple(latents.shape)}, a norm of {rank} and tables {tuple(cos.shape)}"
        )
    if any(each.dtype != low.dtype or each.stride(-1) != 1 for each in (low, q_rope, latents, cos, sin, norm)):
        raise ValueError("projections, cache, tables and norm are of different types, or their numbers lie apart")
    if out is None:
        out = q_rope.new_empty(tokens, heads, rope)
    if tokens == 0:
        return out
    with on(low.device):
        _append_latents[tokens, heads + 1](
            low, norm, q_rope, cos, sin, place, out, latents, low.stride(0), q_rope.stride(0), q_rope.stride(1),
            out.stride(0), out.stride(1), latents.stride(0), eps, RANK=rank, ROTARY=rope,
            BLOCK=triton.next_power_of_2(rank), ROTARY_BLOCK=triton.next_power_of_2(rope), INTERLEAVED=interleaved,
            num_warps=1,
        )  # fmt: skip
    return out


def _rounded(clip: float | None, like: Tensor) -> float:
    """As torch rounds the bounds of numbers of this type."""
    return 0.0 if clip is None else float(torch.tensor(clip, dtype=like.dtype))

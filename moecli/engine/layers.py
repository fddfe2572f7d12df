"""Norms, the rotation of queries and keys, and what relative positions add to their products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.model.spec import NormKind, QueryGrowth, RelativePositions, Rope, RopeKind


def normalise(x: Tensor, weight: Tensor, kind: NormKind, eps: float, bias: Tensor | None = None) -> Tensor:
    """RMS or layer norm over the last axis; statistics in float32. Only the second has biases."""
    if kind is NormKind.RMS:
        return rms_norm(x, weight, eps)
    if kind is NormKind.ZERO_CENTRED:
        return rms_norm(x, 1 + weight.float(), eps)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean of x squared + eps) * weight (arXiv 1910.07467). torch's own takes nine times as long."""
    wide = x.float()
    length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    normed = wide * length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (normed if weight is None else normed.mul_(weight)).to(x.dtype)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), in place."""
    return x.div_(cap).tanh_().mul_(cap)


def growth(of: QueryGrowth, positions: Tensor) -> Tensor:
    """What queries at these positions are multiplied by, float32."""
    return torch.floor((positions.float() + of.offset) / of.every).log1p_().mul_(of.rate).add_(1)


class RotaryEmbedding:
    """Cosines and sines of every position, [positions, dims]; rotating is two products and one shuffle."""

    def __init__(self, rope: Rope, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rope = rope
        self._positions = positions
        self._dtype = dtype
        self._device = device
        self._regime: int | None = None
        self._prepare(0)

    def prepare(self, length: int) -> None:
        """Choose the frequencies for a text of `length` tokens, where the kind of rope depends on it."""
        if self.rope.depends_on_length:
            self._prepare(length)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotate the leading dims of x [T, heads, d], whose first row stands at position `start`."""
        dims = self.rope.dims
        if dims == 0:
            return x
        turned, kept = (x, None) if dims == x.shape[-1] else (x[..., :dims], x[..., dims:])
        cos = self.tables[0][start : start + len(x), None]  # [T, 1, dims]
        sin = self.tables[1][start : start + len(x), None]
        if self.rope.interleaved:
            partner = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partner = turned.roll(dims // 2, -1)
        turned = (turned * cos).addcmul_(partner, sin)
        return turned if kept is None else torch.cat((turned, kept), -1)

    def _prepare(self, length: int) -> None:
        regime = _regime(self.rope, length)
        if regime == self._regime:
            return
        self._regime = regime
        angles = torch.outer(torch.arange(self._positions, dtype=torch.float32), frequencies(self.rope, length))
        cos, sin = angles.cos() * self.rope.attention_factor, angles.sin() * self.rope.attention_factor
        if self.rope.interleaved:
            cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
        else:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        self.tables = cos.to(self._device, self._dtype), sin.to(self._device, self._dtype)


def _regime(rope: Rope, length: int) -> int:
    """A number that changes exactly when the frequencies do."""
    if rope.kind is RopeKind.DYNAMIC:
        return max(length, rope.original_context)
    return int(rope.kind is RopeKind.LONGROPE and length > rope.original_context)


def frequencies(rope: Rope, length: int = 0) -> Tensor:
    """Angle per position of each pair, [dims / 2], float32, for a text of `length` tokens."""
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32) / rope.dims
    theta = rope.theta
    if rope.kind is RopeKind.DYNAMIC:
        stretch = rope.factor * max(length, rope.original_context) / rope.original_context - (rope.factor - 1)
        theta *= stretch ** (rope.dims / (rope.dims - 2))
    plain = 1.0 / theta**exponents
    if rope.kind is RopeKind.PROPORTIONAL:
        plain[rope.turning // 2 :] = 0
        return plain / rope.factor
    if rope.kind is RopeKind.LINEAR:
        return plain / rope.factor
    if rope.kind is RopeKind.YARN:
        return _yarn(rope, plain)
    if rope.kind is RopeKind.LLAMA3:
        return _llama3(rope, plain)
    if rope.kind is RopeKind.LONGROPE:
        factors = rope.long_factors if length > rope.original_context else rope.short_factors
        return plain / torch.tensor(factors)
    return plain


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """Fast pairs as trained, slow ones interpolated, a ramp between (arXiv 2309.00071, section 3.2)."""

    def dimension(rotations: float) -> float:
        return rope.dims * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    width = high - low if high != low else 0.001
    slow = ((torch.arange(rope.dims // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / rope.factor * slow + plain * (1 - slow)


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Wavelengths beyond the training context are stretched, short ones kept, a smooth band between."""
    turns = rope.original_context * plain / (2 * math.pi)  # full turns within the training context
    band = rope.high_frequency_factor - rope.low_frequency_factor
    if band <= 0:  # no band: a switch
        return torch.where(turns < rope.low_frequency_factor, plain / rope.factor, plain)
    smooth = ((turns - rope.low_frequency_factor) / band).clamp(0, 1)
    return (1 - smooth) * plain / rope.factor + smooth * plain


class RelativeBias:
    """What a learned table [buckets, H] adds to q.k for each distance between key and query (arXiv 1910.10683)."""

    def __init__(self, table: Tensor, spec: RelativePositions, positions: int, bidirectional: bool) -> None:
        self._last = positions - 1
        distances = torch.arange(-self._last, positions, device=table.device)  # of keys from queries
        buckets = relative_buckets(distances, spec, bidirectional)
        self._by_distance = table[buckets].float().t().contiguous()  # [H, 2 positions - 1]

    def __call__(self, start: int, queries: int, keys: int) -> Tensor:
        """[H, queries, keys] in float32: query 0 stands at position `start`, key 0 at the beginning of the text."""
        rows = self._by_distance.unfold(1, keys, 1)  # each query's row lies one step before that of the query ahead
        first = self._last - start
        return rows.index_select(1, torch.arange(first, first - queries, -1, device=rows.device))


def relative_buckets(distances: Tensor, spec: RelativePositions, bidirectional: bool) -> Tensor:
    """The row of the table for each distance of a key from its query.

    Half of the buckets are for keys ahead where those are seen; of what is left, half are for single distances, the
    others for ranges that grow like the logarithm.
    """
    buckets, ahead = spec.buckets, torch.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        ahead = (distances > 0) * buckets
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    single = buckets // 2
    growth = torch.log(far.clamp(min=1).float() / single) / math.log(spec.max_distance / single)
    ranged = single + (growth * (buckets - single)).long()
    return ahead + torch.where(far < single, far, ranged.clamp(max=buckets - 1))

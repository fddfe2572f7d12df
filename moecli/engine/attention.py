"""Attention over the cache: grouped-query, to an encoder's text, and latent without expanding the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.engine.cache import INDEX_KEYS, LATENTS, LayerCache
from moecli.engine.indexer import LightningIndexer
from moecli.engine.layers import RelativeBias, RotaryEmbedding, growth, rms_norm, soft_cap
from moecli.engine.weights import LayerWeights
from moecli.kernels import prompt_attention
from moecli.kernels.blocking import BUCKET, SCORES
from moecli.kernels.choice import on_gpu
from moecli.kernels.gpu.launch import card
from moecli.kernels.linear import linear
from moecli.model.spec import MLA, Gate, GroupedQuery, QkNorm

_FEW = 16  # so few queries meet the keys as they lie: torch is up to four times slower with the keys transposed
_WIDEST = 256  # numbers of a head that Triton's attention has room for
_ABSORB = 8  # up to so many new tokens, scoring against latents beats expanding them


class Scratch:
    """Room for one block of attention scores, kept from call to call: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._place: tuple[tuple[int, int, torch.device], Tensor] | None = None

    def acquire(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor that is valid until `name` is acquired again."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size or buffer.dtype is not dtype:
            # All at once: pages never written take no memory, a buffer that grows leaves holes.
            buffer = self._buffers[name] = torch.empty(max(size, SCORES), dtype=dtype, device=like.device)
        return buffer[:size].view(shape)

    def place(self, start: int, first: int, device: torch.device) -> Tensor:
        """`start` and `first`, int32 [2] on the device: once for all layers, and without waiting for it."""
        known = start, first, device
        if self._place is None or self._place[0] != known:
            place = torch.full((2,), start, dtype=torch.int32, device=device)
            place[1] = first
            self._place = known, place
        return self._place[1]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scratch: Scratch,
    scale: float,
    start: int,
    first: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    bias: RelativeBias | None = None,
    sinks: Tensor | None = None,
    causal: bool = True,
    chunked: bool = False,
) -> Tensor:
    """Attention of q [T, H, d] over k [K, rows, d] and v [K, rows, w]: [T, H * w].

    Query 0 stands at position `start`, row 0 at position `first`; unless `causal`, every query sees every row. Where
    `chunked`, a window does not slide, but begins anew at each of its multiples. `sinks` [H] are scores of no key that
    take their part of the softmax (StreamingLLM, arXiv 2309.17453; gpt-oss). By the
    native kernel or Triton's where one serves, else by torch: softmax in float32, in blocks of queries. There keys are
    taken in whole buckets, those not visible masked: a matrix product whose shape changed with every token would be
    compiled anew for every token.
    """
    if chunked and window is not None:
        return _attend_in_chunks(
            q, k, v, window, scratch=scratch, scale=scale, start=start, first=first, softcap=softcap, sinks=sinks
        )
    if causal and bias is None and prompt_attention.serves(q):
        return prompt_attention.grouped_query(
            q, k, v, scale=scale, start=start, first=first, window=window, softcap=softcap, sinks=sinks
        )
    if causal and bias is None and sinks is None and _triton_serves(q) and max(q.shape[-1], v.shape[-1]) <= _WIDEST:
        from moecli.kernels.gpu import attention

        place = scratch.place(start, first, q.device)
        return attention.attend(q, k, v, place, scale=scale, window=window, softcap=softcap).flatten(1)
    offset = start - first
    q = q.unflatten(1, (k.shape[0], -1)).permute(1, 2, 0, 3)
    heads, groups, tokens, _ = q.shape
    out = q.new_empty(tokens, heads, groups, v.shape[-1])
    last = k.shape[1]
    if causal:
        last = min(last, -(-(offset + tokens) // BUCKET) * BUCKET)  # one end for all blocks: fewer shapes
    step = -(-tokens // -(-heads * groups * tokens * last // SCORES))  # blocks of one size, or nearly
    for begin in range(0, tokens, step):
        end = min(begin + step, tokens)
        first = 0 if window is None else max(0, offset + begin - window + 1) // BUCKET * BUCKET
        block = q[:, :, begin:end].reshape(heads, -1, q.shape[-1])  # [K, G * t, d]
        shape = (heads, groups * (end - begin), last - first)  # [K, G * t, n]
        product = scratch.acquire("product", shape, q, q.dtype)
        if block.shape[1] <= _FEW:
            turned = product.view(heads, last - first, -1)  # [K, n, G * t]
            torch.bmm(k[:, first:last], block.transpose(1, 2), out=turned)
            scores = scratch.acquire("scores", shape, q, torch.float32).copy_(turned.transpose(1, 2)).mul_(scale)
        else:
            torch.bmm(block, k[:, first:last].transpose(1, 2), out=product)
            scores = scratch.acquire("scores", shape, q, torch.float32).copy_(product).mul_(scale)
        if softcap is not None:
            soft_cap(scores, softcap)
        if bias is not None:
            scores.view(-1, end - begin, last).add_(bias(offset + begin, end - begin, last))
        if causal and end - begin == 1 and window is None:
            scores[..., offset + end :] = -torch.inf
        elif causal:
            hidden = _hidden(offset + begin - first, end - begin, last - first, window, q.device)
            scores.view(heads, groups, end - begin, -1).masked_fill_(hidden, -torch.inf)
        mixing = torch.softmax(scores, -1, out=scratch.acquire("weights", shape, q, torch.float32))
        if sinks is not None:
            mixing.mul_(_share_of_keys(scores, sinks.view(heads, groups)))
        product.copy_(mixing)
        mixed = torch.bmm(product, v[:, first:last])  # [K, G * t, w]
        out[begin:end] = mixed.view(heads, groups, end - begin, -1).permute(2, 0, 1, 3)
    return out.flatten(1)


def _attend_in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: int,
    *,
    scratch: Scratch,
    scale: float,
    start: int,
    first: int,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """As `attend`: each chunk of positions by itself, over its own keys."""
    parts = []
    for begin in range(start // size * size, start + len(q), size):
        end, seen = min(begin + size, start + len(q)), max(0, begin - first)
        some, rows = slice(max(0, begin - start), end - start), slice(seen, end - first)
        parts.append(
            attend(
                q[some], k[:, rows], v[:, rows], scratch=scratch, scale=scale, start=start + some.start,
                first=first + seen, softcap=softcap, sinks=sinks,
            )
        )  # fmt: skip
    return torch.cat(parts)


def _share_of_keys(scores: Tensor, sinks: Tensor) -> Tensor:
    """What the sinks [K, G] leave of the softmax of scores [K, G * t, n]: [K, G * t, 1]."""
    every = sinks.float()[..., None].expand(-1, -1, scores.shape[1] // sinks.shape[1]).flatten(1)
    return (scores.logsumexp(-1) - every).sigmoid_()[..., None]


def _triton_serves(q: Tensor) -> bool:
    """Whether Triton's kernel takes these queries; without tensor cores torch's blocks of scores are faster."""
    return on_gpu(q.device) and (not q.is_cuda or card(q.device).has_tensor_cores(q.element_size()))


def triton_appends(spec: GroupedQuery) -> bool:
    """Whether Triton's kernel makes keys and values of a projection as this attention wants them."""
    plain_values = not (spec.keys_as_values or spec.value_norm) and spec.value_scale == 1
    widths = spec.value_head_dim == spec.head_dim <= _WIDEST and spec.rope.dims > 0
    return plain_values and widths and spec.qk_norm is not QkNorm.UNWEIGHTED


def _hidden(start: int, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys]: True where a key is not visible; query 0 stands at key `start`."""
    query = torch.arange(start, start + queries, device=device)[:, None]
    key = torch.arange(keys, device=device)
    hidden = key > query
    return hidden if window is None else hidden | (key <= query - window)


class GroupedQueryAttention:
    """x -> q, k, v -> (norm, clip, rotate, or norm after it) -> attend -> (gate) -> output."""

    def __init__(
        self,
        spec: GroupedQuery,
        weights: LayerWeights,
        rotary: RotaryEmbedding,
        scratch: Scratch,
        eps: float,
        bias: RelativeBias | None = None,
        causal: bool = True,
        zero_centred: bool = False,
    ) -> None:
        """Unless `causal`, the tokens of a call see each other, and nothing before them.

        `zero_centred`: the factors of queries and keys are 1 + their norms' weights.
        """
        self._spec, self._bias, self._causal = spec, bias, causal
        self._scratch = scratch
        self._rotary = rotary
        self._eps = eps
        self._qkv, self._qkv_bias = weights.matrix(spec.projection), weights.get(f"{spec.projection}_bias")
        self._gate = weights.matrix("attn_gate") if spec.gate_width else None
        self._o, self._o_bias = weights.matrix("o"), weights.get("o_bias")
        self._q_norm, self._k_norm = weights.get("q_norm"), weights.get("k_norm")
        self._head_norm: Tensor | None = None
        self._sinks = weights.get("sinks")
        if spec.qk_norm in (QkNorm.HEAD, QkNorm.ROTATED_HEAD):
            q, k = weights["q_norm"], weights["k_norm"]
            self._head_norm = torch.cat((q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)))  # [H + K, d]
            if zero_centred:
                self._head_norm = 1 + self._head_norm.float()
        self._triton_appends = triton_appends(spec) and not zero_centred

    def __call__(self, x: Tensor, cache: LayerCache, prompt: int) -> Tensor:
        """x [T, D] -> [T, D]; the tokens are appended to `cache`. Of how long a `prompt` they are does not matter."""
        spec, start = self._spec, cache.length
        qkv = linear(x, self._qkv, self._qkv_bias)  # [T, (H + 2 K) * d]
        by_triton = self._triton_appends and _triton_serves(qkv)
        q = self._append_by_triton(qkv, cache) if by_triton else self._append(qkv, cache)
        if spec.query_growth is not None:
            q = q * growth(spec.query_growth, torch.arange(start, start + len(q), device=q.device))[:, None, None]
            q = q.to(x.dtype)
        k, v = cache.buffers if self._causal else cache.held
        mixed = attend(
            q, k, v, scratch=self._scratch, scale=spec.scale, start=start, first=cache.first, window=spec.window,
            softcap=spec.softcap, bias=self._bias, sinks=self._sinks, causal=self._causal,
            chunked=spec.chunked,
        )  # fmt: skip
        if self._gate is not None:
            mixed = gated(mixed, linear(x, self._gate), spec.gate)
        return linear(mixed, self._o, self._o_bias)

    def _append(self, qkv: Tensor, cache: LayerCache) -> Tensor:
        """Put keys and values into the cache; the queries [T, H, d], ready to attend."""
        spec = self._spec
        qk, v = self._split(qkv)
        qk = self._rotary.rotate(qk.unflatten(-1, (-1, spec.head_dim)), cache.length)  # [T, H + K, d]
        if spec.qk_norm in (QkNorm.ROTATED_HEAD, QkNorm.UNWEIGHTED):
            qk = self._norm_heads(qk)
        q, k = torch.split(qk, [spec.heads, spec.kv_heads], dim=1)
        v = v.unflatten(-1, (-1, spec.value_head_dim))
        if spec.value_norm:
            v = rms_norm(v, None, self._eps)
        cache.append(k, v if spec.value_scale == 1 else v * spec.value_scale)
        return q

    def _append_by_triton(self, qkv: Tensor, cache: LayerCache) -> Tensor:
        """The same in one launch."""
        from moecli.kernels.gpu.append import append

        spec, start = self._spec, cache.length
        cache.extend(len(qkv))
        keys, values = cache.buffers
        return append(
            qkv, keys, values, self._scratch.place(start, cache.first, qkv.device), tables=self._rotary.tables,
            interleaved=spec.rope.interleaved, clip=spec.clip, qk_norm=spec.qk_norm, q_norm=self._q_norm,
            k_norm=self._k_norm, eps=self._eps,
        )  # fmt: skip

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side [T, (H + K) * d], and values [T, K * w], normed and clipped."""
        spec = self._spec
        if spec.clip is not None and spec.qk_norm is QkNorm.NONE:
            qkv = qkv.clamp_(-spec.clip, spec.clip)
        if spec.keys_as_values:
            qk, v = qkv, qkv[:, spec.query_width :]
        else:
            qk, v = qkv.split((spec.query_width + spec.kv_width, spec.value_width), dim=-1)
        if spec.qk_norm is QkNorm.FULL:
            q, k = qk.split((spec.query_width, spec.kv_width), dim=-1)
            q = rms_norm(q, self._q_norm, self._eps)
            k = rms_norm(k, self._k_norm, self._eps)
            qk = torch.cat((q, k), -1)
        elif spec.qk_norm is QkNorm.HEAD:
            qk = self._norm_heads(qk.unflatten(-1, (-1, spec.head_dim))).flatten(-2)
        if spec.clip is not None and spec.qk_norm is not QkNorm.NONE:
            qk, v = qk.clamp(-spec.clip, spec.clip), v.clamp(-spec.clip, spec.clip)
        return qk, v

    def _norm_heads(self, heads: Tensor) -> Tensor:
        """Queries and keys [T, H + K, d], each head by itself."""
        normed = rms_norm(heads, None, self._eps)
        return normed if self._head_norm is None else (normed * self._head_norm).to(heads.dtype)


def gated(mixed: Tensor, gate: Tensor, kind: Gate) -> Tensor:
    """What the heads made, [T, H * w], times a factor of each head, gate [T, H], or of each number of it."""
    wide = gate.double()  # as in the router
    factors = (F.softplus(wide) if kind is Gate.SOFTPLUS else wide.sigmoid()).to(mixed.dtype)
    opened: Tensor = mixed.unflatten(-1, (gate.shape[1], -1)) * factors[..., None]
    return opened.flatten(-2)


class CrossAttention:
    """A decoder's queries over the keys and values of what the encoder made of a text."""

    def __init__(self, spec: GroupedQuery, weights: LayerWeights, scratch: Scratch) -> None:
        self._spec, self._scratch = spec, scratch
        self._q, self._kv, self._o = (weights.matrix(f"cross_{role}") for role in ("q", "kv", "o"))

    def keep(self, states: Tensor, cache: LayerCache) -> None:
        """Put keys and values of the encoder's states [T, D] into an empty `cache`."""
        k, v = linear(states, self._kv).unflatten(-1, (-1, self._spec.head_dim)).chunk(2, dim=1)
        cache.clear()
        cache.append(k, v)

    def __call__(self, x: Tensor, cache: LayerCache) -> Tensor:
        """x [T, D] -> [T, D]."""
        q = linear(x, self._q).unflatten(-1, (-1, self._spec.head_dim))
        mixed = attend(q, *cache.held, scratch=self._scratch, scale=self._spec.scale, start=0, causal=False)
        return linear(mixed, self._o)


class LatentAttention:
    """Keys and values live as one latent per token. Few queries meet the latents as they are (the expansion is
    absorbed into the query and the output); many queries expand them first, a few heads at a time.

    Which way is for a prompt as a whole: results of both differ by roundings, and may not depend on its chunks.
    """

    def __init__(self, spec: MLA, weights: LayerWeights, rotary: RotaryEmbedding, scratch: Scratch) -> None:
        self._spec = spec
        self._scratch = scratch
        self._rotary = rotary
        self._weights = weights
        self._expansion = weights["kv_b"].view(spec.heads, spec.nope_dim + spec.value_dim, spec.kv_rank)
        self._expand_key, self._expand_value = self._expansion.split((spec.nope_dim, spec.value_dim), dim=1)
        self.indexer = None if spec.indexer is None else LightningIndexer(spec.indexer, weights, rotary)

    def __call__(self, x: Tensor, cache: LayerCache, prompt: int) -> Tensor:
        """x [T, D] -> [T, D], of a prompt of so many tokens; their latents are appended to `cache`."""
        start = cache.length
        low_q = self._low_queries(x)
        q = linear(low_q, self._weights.matrix("q" if self._spec.query_rank is None else "q_b"))
        q = q.unflatten(-1, (self._spec.heads, -1))  # [T, H, nope + rope]
        if self._spec.query_growth is not None:
            positions = torch.arange(start, start + len(x), device=x.device)
            q = (q * growth(self._spec.query_growth, positions)[:, None, None]).to(x.dtype)
        q_nope, q_rope = q.split((self._spec.nope_dim, self._spec.rope_dim), dim=-1)
        low = linear(x, self._weights["kv_a"], self._weights.get("kv_a_bias"))  # [T, rank + rope]
        if _triton_serves(low) and self._spec.rope.dims:
            self._append_by_triton(low, q_rope, cache)
        else:
            q_rope = self._rotary.rotate(q_rope, start)
            cache.extend(len(low))
            cache.fill(LATENTS, self._latents(low, start))
        if self.indexer is None:
            mixed = self._attend(q_nope, q_rope, cache.buffers[0][0], start, cache.first, prompt)
        else:
            if not self.indexer.shared:
                cache.fill(INDEX_KEYS, self.indexer.keys(x, start))
            mixed = self._attend_chosen(x, low_q, q_nope, q_rope, cache, start, prompt)
        if self._spec.gate_width:
            mixed = gated(mixed, linear(x, self._weights.matrix("attn_gate")), Gate.SIGMOID)
        return linear(mixed, self._weights.matrix("o"), self._weights.get("o_bias"))

    def _attend_chosen(
        self, x: Tensor, low_q: Tensor, q_nope: Tensor, q_rope: Tensor, cache: LayerCache, start: int, prompt: int
    ) -> Tensor:
        """As below, over the tokens that the indexer chooses: for each query by itself, once there are more of them."""
        assert self.indexer is not None
        latents = cache.buffers[LATENTS][0]
        whole = self.indexer.seen_whole(start, len(x))
        parts = [self._attend(q_nope[:whole], q_rope[:whole], latents, start, 0, prompt)] if whole else []
        if whole == len(x):
            return parts[0]
        chosen: Iterable[Tensor]
        if self.indexer.shared:
            chosen = cache.choices.take(cache.texts, start + whole)
        else:
            chosen = self.indexer.choose(x[whole:], low_q[whole:], cache.buffers[INDEX_KEYS][0], start + whole)
            chosen = cache.choices.keep(cache.texts, start + whole, chosen)
        for place, rows in enumerate(chosen, whole):
            one = slice(place, place + 1)
            parts.append(self._attend(q_nope[one], q_rope[one], latents.index_select(0, rows), len(rows) - 1, 0, 1))
        return torch.cat(parts)

    def _attend(self, q_nope: Tensor, q_rope: Tensor, latents: Tensor, start: int, first: int, prompt: int) -> Tensor:
        """q [T, H, nope] and [T, H, rope] over latents [rows, rank + rope]: [T, H * w]."""
        spec = self._spec
        if prompt_attention.serves(q_nope):
            return prompt_attention.latent(
                torch.cat((q_nope, q_rope), -1), latents, self._expansion, nope_dim=spec.nope_dim,
                scale=spec.scale, start=start, first=first, window=spec.window, prompt=prompt,
            )  # fmt: skip
        expand = prompt > _ABSORB
        if _triton_serves(q_nope):
            expand = prompt_attention.expansion_pays(prompt, spec.kv_rank, spec.nope_dim, spec.value_dim)
        attention = self._expanded if expand else self._absorbed
        return attention(q_nope, q_rope, latents, start - first)

    def _low_queries(self, x: Tensor) -> Tensor:
        """What queries are made of: their latent [T, rank], or x itself."""
        w = self._weights
        if self._spec.query_rank is None:
            return x
        return rms_norm(linear(x, w["q_a"], w.get("q_a_bias")), w["q_a_norm"], self._spec.norm_eps)

    def _append_by_triton(self, low: Tensor, q_rope: Tensor, cache: LayerCache) -> None:
        """Rotate queries where they lie, and put the latents of low [T, rank + rope] into the cache, in one launch."""
        from moecli.kernels.gpu.append import append_latents

        start = cache.length
        cache.extend(len(low))
        append_latents(
            low, q_rope, cache.buffers[0][0], self._scratch.place(start, cache.first, low.device),
            norm=self._weights["kv_a_norm"], eps=self._spec.norm_eps, tables=self._rotary.tables,
            interleaved=self._spec.rope.interleaved, out=q_rope,
        )  # fmt: skip

    def _latents(self, low: Tensor, start: int) -> Tensor:
        """[T, 1, rank + rope]: the normed latent, and the one rotary key that all heads share."""
        latent, key = low.split((self._spec.kv_rank, self._spec.rope_dim), dim=-1)
        latent = rms_norm(latent, self._weights["kv_a_norm"], self._spec.norm_eps)
        return torch.cat((latent[:, None], self._rotary.rotate(key[:, None], start)), -1)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, latents: Tensor, offset: int) -> Tensor:
        """One key/value "head", the latent itself, shared by all query heads."""
        q_latent = torch.bmm(q_nope.transpose(0, 1), self._expand_key).transpose(0, 1)  # [T, H, rank]
        if _triton_serves(q_rope):
            from moecli.kernels.gpu.attention import attend_latents

            place = self._scratch.place(offset, 0, q_rope.device)
            mixed = attend_latents(
                q_latent, q_rope, latents, place, scale=self._spec.scale, window=self._spec.window
            )  # [T, H, rank]
        else:
            q = torch.cat((q_latent, q_rope), -1)  # [T, H, rank + rope]
            mixed = self._meet(q, latents[None], latents[None, :, : self._spec.kv_rank], offset)
            mixed = mixed.unflatten(-1, (self._spec.heads, -1))
        return torch.bmm(mixed.transpose(0, 1), self._expand_value.transpose(1, 2)).transpose(0, 1).flatten(1)

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, latents: Tensor, offset: int) -> Tensor:
        latents = latents[: offset + len(q_nope)]
        latent, key = latents.split((self._spec.kv_rank, self._spec.rope_dim), dim=-1)
        q = torch.cat((q_nope, q_rope), -1)  # [T, H, d]
        room = 3 * SCORES if _triton_serves(q) else SCORES  # which holds no scores then
        step = max(1, room // (len(latent) * (self._spec.head_dim + self._spec.value_dim)))
        parts = []
        for begin in range(0, self._spec.heads, step):
            some = slice(begin, begin + step)
            k_nope = torch.matmul(latent, self._expand_key[some].transpose(1, 2))  # [h, n, nope]
            k = torch.cat((k_nope, key.expand(len(k_nope), -1, -1)), -1)
            v = torch.matmul(latent, self._expand_value[some].transpose(1, 2))
            parts.append(self._meet(q[:, some], k, v, offset))
        return torch.cat(parts, -1)

    def _meet(self, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        spec = self._spec
        return attend(q, k, v, scratch=self._scratch, scale=spec.scale, start=offset, window=spec.window)

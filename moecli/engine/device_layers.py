"""The halves of a layer for a few tokens on a GPU, in few launches. Only imported where Triton's kernels serve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli.engine.layers import RotaryEmbedding
from moecli.engine.router import Routing
from moecli.engine.weights import LayerWeights
from moecli.experts.store import ExpertStore
from moecli.formats import bytes_for
from moecli.kernels.blocking import MAX_TOKENS
from moecli.kernels.gpu.append import append, append_latents
from moecli.kernels.gpu.attention import attend, attend_latents
from moecli.kernels.gpu.norms import Branch, Normed, add_and_norm
from moecli.kernels.gpu.products import Experts, quantised_linear
from moecli.kernels.gpu.quantise import quantise
from moecli.kernels.gpu.router import route
from moecli.kernels.linear import Matrix, Packed, format_of
from moecli.model.spec import MLA, FeedForward, GroupedQuery, Mixture, ModelSpec, NormKind
from moecli.store.expert_record import mixture_record

Text = tuple[Sequence[Tensor], Tensor]  # its cache's buffers in a layer; int32 [2]: where its tokens and its rows begin


class Product:
    """A matrix [out, in] as few tokens meet it, with its bias."""

    def __init__(self, matrix: Matrix, bias: Tensor | None = None) -> None:
        self._matrix, self._bias = matrix, bias

    def __call__(self, x: Normed | Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Of x [T, in]: [T, out], in x's type unless `dtype` says another."""
        states = x if isinstance(x, Tensor) else x.states
        dtype = dtype or states.dtype
        if isinstance(self._matrix, Packed):
            codes, scales = quantise(x) if isinstance(x, Tensor) else (x.codes, x.scales)
            out = states.new_empty(len(states), self._matrix.shape[0], dtype=dtype)
            quantised_linear(codes, scales, self._matrix.dtype, self._matrix.data, self._matrix.shape, out)
        else:
            out = F.linear(states.to(self._matrix.dtype), self._matrix).to(dtype)
        return out if self._bias is None else out.add_(self._bias)


class DeviceAttention:
    """Grouped-query attention: project, put into the cache, attend, project."""

    def __init__(self, spec: GroupedQuery, weights: LayerWeights, rotary: RotaryEmbedding, eps: float) -> None:
        self._spec, self._rotary, self._eps = spec, rotary, eps
        self._norms = weights.get("q_norm"), weights.get("k_norm")
        self._qkv = Product(weights.matrix("qkv"), weights.get("qkv_bias"))
        self._output = Product(weights.matrix("o"), weights.get("o_bias"))

    def __call__(self, normed: Normed, texts: Sequence[Text]) -> Tensor:
        """[T, D] of normed states, as many tokens of each text."""
        spec, (q_norm, k_norm) = self._spec, self._norms
        mixed = []
        for qkv, ((keys, values), place) in zip(self._qkv(normed).chunk(len(texts)), texts, strict=True):
            q = append(
                qkv, keys, values, place, tables=self._rotary.tables, interleaved=spec.rope.interleaved,
                clip=spec.clip, qk_norm=spec.qk_norm, q_norm=q_norm, k_norm=k_norm, eps=self._eps,
            )  # fmt: skip
            mixed.append(attend(q, keys, values, place, scale=spec.scale, window=spec.window, softcap=spec.softcap))
        return self._output(_together(mixed).flatten(1))


class DeviceLatentAttention:
    """Latent attention, its expansion absorbed into queries and results."""

    def __init__(self, spec: MLA, weights: LayerWeights, rotary: RotaryEmbedding) -> None:
        self._spec, self._rotary = spec, rotary
        self._query = Product(weights.matrix("q" if spec.query_rank is None else "q_b"))
        self._down = None if spec.query_rank is None else Product(weights.matrix("q_a"), weights.get("q_a_bias"))
        self._query_norm, self._latent_norm = weights.get("q_a_norm"), weights["kv_a_norm"]
        self._latents = Product(weights.matrix("kv_a"), weights.get("kv_a_bias"))
        expansion = weights["kv_b"].view(spec.heads, spec.nope_dim + spec.value_dim, spec.kv_rank)
        self._expand_key, self._expand_value = expansion.split((spec.nope_dim, spec.value_dim), dim=1)
        self._output = Product(weights.matrix("o"), weights.get("o_bias"))

    def __call__(self, normed: Normed, texts: Sequence[Text]) -> Tensor:
        """As of grouped-query attention."""
        spec = self._spec
        low = self._latents(normed)  # [T, rank + rope]
        if self._down is not None and self._query_norm is not None:
            normed = add_and_norm(self._down(normed), None, self._query_norm, kind=NormKind.RMS, eps=spec.norm_eps)
        queries = self._query(normed).unflatten(-1, (spec.heads, -1))
        q_nope, q_rope = queries.split((spec.nope_dim, spec.rope_dim), dim=-1)  # [T, H, nope], [T, H, rope]
        q_latent = torch.bmm(q_nope.transpose(0, 1), self._expand_key).transpose(0, 1)  # [T, H, rank]
        mixed = []
        parts = (each.chunk(len(texts)) for each in (low, q_latent, q_rope))
        for new, latent, rope, ((latents,), place) in zip(*parts, texts, strict=True):
            turned = append_latents(
                new, rope, latents[0], place, norm=self._latent_norm, eps=spec.norm_eps, tables=self._rotary.tables,
                interleaved=spec.rope.interleaved,
            )  # fmt: skip
            mixed.append(attend_latents(latent, turned, latents[0], place, scale=spec.scale, window=spec.window))
        expanded = torch.bmm(_together(mixed).transpose(0, 1), self._expand_value.transpose(1, 2))  # [H, T, w]
        return self._output(expanded.transpose(0, 1).flatten(1))


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class DeviceFeedForward:
    """A mixture of experts beside one that all tokens take, or that one alone."""

    def __init__(self, spec: ModelSpec, index: int, weights: LayerWeights, store: ExpertStore) -> None:
        ffn = spec.layers[index].ffn
        self.mixture = ffn if isinstance(ffn, Mixture) else None
        self._weights, self._width = weights, spec.hidden_size
        shared, prefix = (ffn.shared, "shared_") if isinstance(ffn, Mixture) else (ffn, "")
        self._shared = None if shared is None else self._single(shared, prefix)
        gate = weights.get("shared_gate")
        self._gate = None if gate is None else Product(gate)
        self._everyone = torch.zeros(MAX_TOKENS, dtype=torch.int64, device=weights["ffn_norm"].device)
        self.experts = None if self.mixture is None else self._in_device(spec, index, self.mixture, store)

    def route(self, normed: Normed) -> Routing:
        """Whom the tokens take."""
        assert self.mixture is not None
        w = self._weights
        found = route(
            normed.states, w["router"], self.mixture.router, w.get("router_bias"), w.get("router_linear_bias")
        )
        return Routing(*found)

    def routed(self, normed: Normed, routing: Routing, outputs: Tensor | None = None) -> Tensor:
        """What the chosen experts that are in the device make of the tokens: float32 [T * A, D], `outputs` if given."""
        assert self.mixture is not None and self.experts is not None
        return self.experts(normed, routing.topk_ids, self.mixture.router.top_k, outputs)

    def branch(self, normed: Normed, routing: Routing | None, outputs: Tensor | None) -> Branch:
        """What is added to the residual stream; `outputs` [T * A, D] are of the routed experts."""
        shared = None
        if self._shared is not None:
            shared = self._shared(normed, self._everyone[: len(normed.states)], 1)
        if routing is None or outputs is None:
            assert shared is not None, "a layer has a mixture or one expert that all take"
            return Branch(shared)
        gate = None if self._gate is None else self._gate(normed.states)
        return Branch(outputs, routing.topk_weights, shared, gate)

    def _single(self, ffn: FeedForward, prefix: str) -> Experts:
        """Gate and up in one matrix, one above the other."""
        gate_up, down = (self._weights.matrix(prefix + role) for role in ("gate_up", "down"))
        dtype = format_of(gate_up)
        records, downs = (torch.tensor([_address(each)], device=each.device) for each in (gate_up, down))
        up = bytes_for(dtype, (ffn.intermediate_size, self._width))
        return Experts(dtype, self._width, ffn.intermediate_size, ffn.activation, records, 0, up, 0, downs)

    def _in_device(self, spec: ModelSpec, index: int, mixture: Mixture, store: ExpertStore) -> Experts | None:
        """Experts by the store's table of what is in the device; None where it has none."""
        if (records := store.records(index)) is None:
            return None
        at = {name: field.offset for name, field in mixture_record(spec, mixture, store.dtype).fields.items()}
        expert = mixture.expert
        return Experts(
            store.dtype, self._width, expert.intermediate_size, expert.activation,
            records, at.get("gate"), at["up"], at["down"],
        )  # fmt: skip


def _address(matrix: Matrix) -> int:
    return (matrix.data if isinstance(matrix, Packed) else matrix).data_ptr()

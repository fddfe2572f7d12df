"""Which halves of a block have a native call for a token that comes alone."""

from __future__ import annotations

from collections.abc import Sequence

from moecli.engine.weights import LayerWeights
from moecli.experts.store import ExpertStore
from moecli.kernels.products import Matrix, Packed
from moecli.kernels.token import Half, TokenAttention, TokenMixture, can_cut, serves
from moecli.model.spec import GroupedQuery, Mixture, ModelSpec


def token_attention(spec: ModelSpec, layer: int, weights: LayerWeights) -> TokenAttention | None:
    """None for other attentions, formats and devices."""
    attention = spec.layers[layer].attention
    if not isinstance(attention, GroupedQuery):
        return None
    half = _half(spec, "attn", weights, (weights.matrix("qkv"), weights.matrix("o")))
    return TokenAttention(half, attention, weights) if half else None


def token_mixture(spec: ModelSpec, layer: int, weights: LayerWeights, store: ExpertStore) -> TokenMixture | None:
    """None for other formats and devices, and for stacked gates and ups whose rows interlace."""
    ffn = spec.layers[layer].ffn
    always, prefix = (ffn.shared, "shared_") if isinstance(ffn, Mixture) else (ffn, "")
    if always and not can_cut(always.intermediate_size):
        return None
    roles = (f"{prefix}gate_up", f"{prefix}down") if always else ()
    half = _half(spec, "ffn", weights, [weights.matrix(role) for role in ("o", *roles)])  # experts are as "o" is
    if half is None:
        return None
    return TokenMixture(half, ffn, weights, store.addresses(layer) if isinstance(ffn, Mixture) else None)


def _half(spec: ModelSpec, name: str, weights: LayerWeights, matrices: Sequence[Matrix]) -> Half | None:
    first = matrices[0]
    if not isinstance(first, Packed):
        return None
    before = weights[f"{name}_norm"]
    after = weights[f"post_{name}_norm"] if spec.branch_norms else None
    half = Half(first.dtype, before.dtype, spec.norm, spec.norm_eps, spec.residual_multiplier, before, after)
    return half if serves(half, matrices) else None

"""Which sublayers of a block have a native call for a token that comes alone."""

from __future__ import annotations

from collections.abc import Sequence

from moecli.engine.weights import LayerWeights
from moecli.experts.store import ExpertStore
from moecli.kernels.decode_step import AttentionSublayer, MoeSublayer, Sublayer, can_cut, serves
from moecli.kernels.linear import Matrix, Packed
from moecli.model.spec import GroupedQuery, Mixture, ModelSpec


def token_attention(spec: ModelSpec, layer: int, weights: LayerWeights) -> AttentionSublayer | None:
    """None for other attentions, formats and devices."""
    attention = spec.layers[layer].attention
    if not isinstance(attention, GroupedQuery):
        return None
    sublayer = _sublayer(spec, "attn", weights, (weights.matrix("qkv"), weights.matrix("o")))
    return AttentionSublayer(sublayer, attention, weights) if sublayer else None


def token_mixture(spec: ModelSpec, layer: int, weights: LayerWeights, store: ExpertStore) -> MoeSublayer | None:
    """None for other formats and devices, and for stacked gates and ups whose rows interlace."""
    ffn = spec.layers[layer].ffn
    always, prefix = (ffn.shared, "shared_") if isinstance(ffn, Mixture) else (ffn, "")
    if always and not can_cut(always.intermediate_size):
        return None
    roles = (f"{prefix}gate_up", f"{prefix}down") if always else ()
    matrices = [weights.matrix(role) for role in ("o", *roles)]  # experts are as "o" is
    sublayer = _sublayer(spec, "ffn", weights, matrices)
    if sublayer is None:
        return None
    return MoeSublayer(sublayer, ffn, weights, store.addresses(layer) if isinstance(ffn, Mixture) else None)


def _sublayer(spec: ModelSpec, name: str, weights: LayerWeights, matrices: Sequence[Matrix]) -> Sublayer | None:
    first = matrices[0]
    if not isinstance(first, Packed):
        return None
    before = weights[f"{name}_norm"]
    after = weights[f"post_{name}_norm"] if spec.branch_norms else None
    sublayer = Sublayer(first.dtype, before.dtype, spec.norm, spec.norm_eps, spec.residual_multiplier, before, after)
    return sublayer if serves(sublayer, matrices) else None

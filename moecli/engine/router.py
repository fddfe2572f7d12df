"""Which experts each token takes, and with what weights: one function per rule, all in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moecli.engine.layers import soft_cap
from moecli.kernels.linear import linear
from moecli.model.spec import GroupScore, Router, Scoring


class Routing(NamedTuple):
    """The selected experts' numbers and weights, both [T, A], best first; the logits of all experts, float32 [T, E]."""

    topk_ids: Tensor
    topk_weights: Tensor
    logits: Tensor


def route(x: Tensor, weight: Tensor, bias: Tensor | None, router: Router, linear_bias: Tensor | None = None) -> Routing:
    """Of x [T, D] by weight [E, D], the biases [E] of its product and of the ranking alone, all in float32.

    A weight is 0 where the expert is full: tokens of one pass, x, take it in their order.
    """
    routing = _choose(linear(x.float(), weight, linear_bias), bias, router)
    if router.capacity is None:
        return routing
    full = _places(routing.topk_ids) >= router.capacity
    return routing._replace(topk_weights=routing.topk_weights.masked_fill(full, 0))


def _places(topk_ids: Tensor) -> Tensor:
    """How many assignments before each [T, A] are the same expert's."""
    chosen = topk_ids.flatten()
    order = chosen.argsort(stable=True)  # assignments, those of one expert side by side
    side_by_side = chosen[order]
    firsts = torch.searchsorted(side_by_side, side_by_side)
    places = torch.empty_like(chosen)
    places[order] = torch.arange(len(chosen), device=chosen.device) - firsts
    return places.view(topk_ids.shape)


def _choose(logits: Tensor, bias: Tensor | None, router: Router) -> Routing:
    if router.softcap is not None:
        soft_cap(logits, router.softcap)
    if router.scoring is Scoring.SPARSEMIXER:
        return _sparsemixer(logits, router)
    if router.scoring is Scoring.SOFTMAX_OF_CHOSEN:
        best, topk_ids = logits.topk(router.top_k, dim=-1)
        return Routing(topk_ids, best.softmax(-1) * router.scaling, logits)
    scores = gate_scores(logits, router)
    if bias is not None:
        ranking = scores + bias
    else:  # large logits have one sigmoid
        ranking = scores if router.scoring is Scoring.SOFTMAX or router.n_group > 1 else logits
    if router.n_group > 1:
        ranking = _within_best_groups(ranking, router)
    topk_ids = ranking.topk(router.top_k, dim=-1).indices
    return Routing(topk_ids, _weigh(scores.gather(-1, topk_ids), router), logits)


def gate_scores(logits: Tensor, router: Router) -> Tensor:
    """What the router thinks of each expert, [T, E]: their softmax, or each one's sigmoid."""
    return sigmoid(logits) if router.scoring in (Scoring.SIGMOID, Scoring.SIGMOID_INPUT) else logits.softmax(-1)


def _sparsemixer(logits: Tensor, router: Router) -> Routing:
    """One expert after the other, its weight its share among the rivals that are left (arXiv 2409.12136)."""
    left, topk_ids, weights = logits, [], []
    for _ in range(router.top_k):
        best, chosen = left.max(-1, keepdim=True)
        beaten = (best - logits) / torch.maximum(logits.abs(), best) > 2 * router.jitter
        weights.append(left.masked_fill(beaten, -torch.inf).softmax(-1).gather(-1, chosen))
        topk_ids.append(chosen)
        left = left.scatter(-1, chosen, -torch.inf)
    return Routing(torch.cat(topk_ids, -1), torch.cat(weights, -1), logits)


def sigmoid(x: Tensor) -> Tensor:
    """Rounded from float64: in float32 torch's vectors differ from what they leave over, by the place of a number."""
    return x.double().sigmoid().to(x.dtype)


def _within_best_groups(ranking: Tensor, router: Router) -> Tensor:
    """Rule out every expert outside the best `kept_groups` groups."""
    grouped = ranking.unflatten(-1, (router.n_group, -1))  # [T, groups, E / groups]
    if router.group_score is GroupScore.MAX:
        group_scores = grouped.amax(-1)
    else:
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    kept = group_scores.topk(router.topk_group, dim=-1).indices
    dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, kept, False)
    ranking = grouped.masked_fill(dropped[..., None], -torch.inf).flatten(-2)
    return ranking


def _weigh(weights: Tensor, router: Router) -> Tensor:
    if router.norm_power is not None:
        total = weights.sum(-1, keepdim=True) if router.norm_power == 1 else weights.norm(router.norm_power, -1, True)
        weights = weights / (total + router.norm_epsilon).clamp(min=router.norm_floor)
    return weights if router.scaling == 1 else weights * router.scaling

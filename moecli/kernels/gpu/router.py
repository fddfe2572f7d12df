"""The router of a decode step: logits in float32, the chosen experts and their weights, all on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecli.kernels.gpu.functions import device_function
from moecli.model.spec import GroupScore, Router, Scoring

_SCORINGS = {Scoring.SOFTMAX: 0, Scoring.SIGMOID: 1, Scoring.SOFTMAX_OF_CHOSEN: 2}


def serves(router: Router) -> bool:
    """Whether this rule is computed here."""
    usual = not (router.reads_scaled or router.expert_scale or router.softcap or router.capacity)
    return usual and router.scoring in _SCORINGS and router.norm_power in (None, 1, 2)


@triton.jit
def _logits(x, weight, bias, out, columns, experts, BLOCK: tl.constexpr):
    """One expert's logit for one token."""
    expert, token = tl.program_id(0), tl.program_id(1)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < columns
        states = tl.load(x + token * columns + column, mask, 0.0).to(tl.float32)
        sums += states * tl.load(weight + expert * columns + column, mask, 0.0)
    total = tl.sum(sums)
    if bias is not None:
        total += tl.load(bias + expert)
    tl.store(out + token * experts + expert, total)


@device_function
def _best(values, index, SIZE: tl.constexpr):
    """The place of the largest of some numbers, the first of equals."""
    return tl.min(tl.where(values == tl.max(values), index, SIZE))


@triton.jit
def _choose(
    logits, correction, ids, weights, experts, per_group, groups, kept, top_k, epsilon, floor, scaling,
    SCORING: tl.constexpr, TOP2: tl.constexpr, POWER: tl.constexpr,
    LIMITED: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """One token's choice. Experts are a table of groups [GROUPS, SIZE / GROUPS], padded."""
    token = tl.program_id(0)
    WIDTH: tl.constexpr = SIZE // GROUPS
    place = tl.arange(0, SIZE)
    group, inside = place // WIDTH, place % WIDTH
    expert = group * per_group + inside
    real = (group < groups) & (inside < per_group)
    logit = tl.load(logits + token * experts + expert, real, -float("inf"))
    if SCORING == 0:
        powers = tl.exp(logit - tl.max(logit))
        scores = powers / tl.sum(powers)
    elif SCORING == 1:
        scores = 1 / (1 + tl.exp(-logit))
    else:
        scores = logit
    ranking = scores
    if correction is not None:
        ranking += tl.load(correction + expert, real, 0.0)
    ranking = tl.where(real, ranking, -float("inf"))
    if LIMITED:
        table = tl.reshape(ranking, [GROUPS, WIDTH])
        best = tl.max(table, 1)
        if TOP2:
            column = tl.arange(0, WIDTH)[None, :]
            first = tl.min(tl.where(table == best[:, None], column, WIDTH), 1)
            rest = tl.where(column == first[:, None], -float("inf"), table)
            second = tl.max(rest, 1)
            best += tl.where(second == -float("inf"), 0.0, second)
        number = tl.arange(0, GROUPS)
        best = tl.where(number < groups, best, -float("inf"))
        allowed = tl.zeros([GROUPS], tl.int32)
        for _ in range(kept):
            kept_group = _best(best, number, GROUPS)
            allowed = tl.where(number == kept_group, 1, allowed)
            best = tl.where(number == kept_group, -float("inf"), best)
        ruled_in = tl.reshape(tl.broadcast_to(allowed[:, None], [GROUPS, WIDTH]), [SIZE])
        ranking = tl.where(ruled_in > 0, ranking, -float("inf"))
    rank = tl.arange(0, RANKS)
    picked = tl.where(rank < top_k, 0.0, -float("inf"))
    for step in range(top_k):
        chosen = _best(ranking, place, SIZE)
        score = tl.sum(tl.where(place == chosen, scores, 0.0))
        taken = chosen // WIDTH * per_group + chosen % WIDTH
        tl.store(ids + token * top_k + step, taken.to(tl.int64))
        picked = tl.where(rank == step, score, picked)
        ranking = tl.where(place == chosen, -float("inf"), ranking)
    if SCORING == 2:
        picked = tl.exp(picked - tl.max(picked))
        picked = picked / tl.sum(picked)
    else:
        picked = tl.where(rank < top_k, picked, 0.0)
        if POWER == 1:
            picked = picked / tl.maximum(tl.sum(picked) + epsilon, floor)
        elif POWER == 2:
            picked = picked / tl.maximum(tl.sqrt_rn(tl.sum(picked * picked)) + epsilon, floor)
    tl.store(weights + token * top_k + rank, picked * scaling, rank < top_k)


def route(
    x: Tensor, weight: Tensor, router: Router, correction: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of normed states [T, D]: chosen experts int64 [T, A], best first, their weights and all logits, float32.

    `weight` [E, D], `bias` [E] of the product and `correction` [E] of the ranking alone, all float32.
    """
    tokens, columns = x.shape
    logits = x.new_empty(tokens, router.experts, dtype=torch.float32)
    ids = x.new_empty(tokens, router.top_k, dtype=torch.int64)
    weights = x.new_empty(tokens, router.top_k, dtype=torch.float32)
    _logits[router.experts, tokens](
        x, weight, bias, logits, columns, router.experts,
        min(2048, triton.next_power_of_2(columns)),
    )  # fmt: skip
    per_group = router.experts // router.n_group
    groups = triton.next_power_of_2(router.n_group)
    _choose[(tokens,)](
        logits, correction, ids, weights, router.experts, per_group, router.n_group, router.topk_group, router.top_k,
        router.norm_epsilon, router.norm_floor, router.scaling,
        _SCORINGS[router.scoring], router.group_score is GroupScore.TOP2_SUM,
        int(router.norm_power or 0), router.n_group > 1, groups, groups * triton.next_power_of_2(per_group),
        triton.next_power_of_2(router.top_k),
    )  # fmt: skip
    return ids, weights, logits

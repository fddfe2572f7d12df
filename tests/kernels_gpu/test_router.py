"""Whom the tokens of a decode step take, by Triton: the experts and weights of the rules in torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moecli.engine import router as rules
from moecli.kernels.gpu.router import route, serves
from moecli.model.spec import GroupScore, Router, Scoring
from tests.support.native_samples import gaussian

SIGMOID, CHOSEN = Scoring.SIGMOID, Scoring.SOFTMAX_OF_CHOSEN
TOP2 = GroupScore.TOP2_SUM
ROUTERS = {
    "softmax": Router(8, 2),
    "power 1": Router(6, 3, norm_power=1),
    "power 2": Router(60, 4, norm_power=2),
    "scaled": Router(7, 3, norm_power=1, scaling=2.5),
    "floor": Router(6, 3, norm_power=1, norm_floor=0.9),
    "epsilon": Router(6, 3, SIGMOID, norm_power=1, norm_epsilon=0.5),
    "chosen": Router(32, 4, CHOSEN, bias=True),
    "scaled chosen": Router(6, 2, CHOSEN, scaling=1.5),
    "sigmoid": Router(8, 2, SIGMOID, bias=True),
    "groups by two": Router(
        32, 6, SIGMOID, norm_power=1, scaling=2.5, n_group=8, topk_group=3, group_score=TOP2, correction_bias=True
    ),
    "groups of one by two": Router(4, 2, SIGMOID, n_group=4, topk_group=3, group_score=TOP2, correction_bias=True),
    "groups by the best": Router(160, 6, n_group=8, topk_group=3, scaling=16.0),
    "three groups": Router(18, 4, n_group=3, topk_group=2),
    "corrected": Router(128, 8, SIGMOID, norm_power=1, norm_epsilon=1e-20, correction_bias=True),
    "all": Router(4, 4),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_every_rule(name: str, device: torch.device) -> None:
    router = ROUTERS[name]
    assert serves(router)
    x, weight = gaussian(5, 40, seed=1), gaussian(router.experts, 40, seed=2) / 4
    correction = gaussian(router.experts, seed=3) if router.correction_bias else None
    bias = gaussian(router.experts, seed=4) if router.bias else None
    wanted = rules.route(x, weight, correction, router, bias)
    moved = (None if each is None else each.to(device) for each in (correction, bias))
    ids, weights, logits = (each.cpu() for each in route(x.to(device), weight.to(device), router, *moved))
    assert torch.equal(ids, wanted.topk_ids) and ids.dtype == torch.int64
    assert weights.dtype == logits.dtype == torch.float32
    assert torch.allclose(logits, wanted.logits, rtol=1e-5, atol=1e-5)
    assert torch.allclose(weights, wanted.topk_weights, rtol=1e-5, atol=1e-6)


def test_wide_states_of_16_bits(device: torch.device) -> None:
    """In several runs of columns, the last not full."""
    x, weight, router = gaussian(2, 2200, seed=1).bfloat16(), gaussian(8, 2200, seed=2) / 47, Router(8, 2)
    wanted = rules.route(x, weight, None, router)
    ids, _, logits = (each.cpu() for each in route(x.to(device), weight.to(device), router))
    assert torch.equal(ids, wanted.topk_ids)
    assert torch.allclose(logits, wanted.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ROUTERS)
def test_of_equals_the_lower_number_is_taken(name: str, device: torch.device) -> None:
    router = ROUTERS[name]
    x, weight = gaussian(2, 40).to(device), torch.ones(router.experts, 40, device=device)
    ids, *_ = route(x, weight, router)
    assert ids.tolist() == [list(range(router.top_k))] * 2


def test_other_rules_are_left_to_torch() -> None:
    assert not serves(Router(8, 1, capacity=3))
    assert not serves(Router(8, 2, norm_power=3))
    assert all(serves(replace(ROUTERS["softmax"], scoring=each)) for each in (SIGMOID, CHOSEN))

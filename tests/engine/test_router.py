"""Routing: each rule against a few plain lines, and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from moecli.engine.router import route
from moecli.model.families import read_spec
from moecli.model.spec import GroupScore, Mixture, Router, Scoring

LN = [math.log(4), math.log(3), math.log(2), math.log(1)]  # softmax: .4 .3 .2 .1


def plain(logits: list[float], bias: list[float], router: Router) -> tuple[list[int], list[float]]:
    """One token, in plain Python."""
    experts = range(router.experts)
    if router.scoring is Scoring.SOFTMAX_OF_CHOSEN:
        chosen = sorted(experts, key=lambda e: -logits[e])[: router.top_k]
        powers = [math.exp(logits[e]) for e in chosen]
        return chosen, [router.scaling * p / sum(powers) for p in powers]
    if router.scoring is Scoring.SOFTMAX:
        scores = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
    else:
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    ranking = [score + b for score, b in zip(scores, bias, strict=True)]
    size = router.experts // router.n_group
    groups = [sorted(ranking[g * size : (g + 1) * size], reverse=True) for g in range(router.n_group)]
    best = [group[0] if router.group_score is GroupScore.MAX else sum(group[:2]) for group in groups]
    kept = sorted(range(router.n_group), key=lambda g: -best[g])[: router.topk_group]
    chosen = sorted((e for e in experts if e // size in kept), key=lambda e: -ranking[e])[: router.top_k]
    weights = [scores[e] for e in chosen]
    if router.norm_power is not None:
        total = sum(w**router.norm_power for w in weights) ** (1 / router.norm_power) + router.norm_epsilon
        weights = [w / max(total, router.norm_floor) for w in weights]
    return chosen, [w * router.scaling for w in weights]


ROUTERS = {
    "softmax": Router(6, 2),
    "softmax normalised": Router(6, 2, norm_power=1.0),
    "a floor under the sum": Router(6, 2, norm_power=1.0, norm_floor=0.6),
    "p-norm": Router(6, 3, norm_power=2.0),
    "one expert normalised": Router(6, 1, norm_power=1.0),
    "all experts": Router(6, 6, norm_power=1.0),
    "scaled": Router(6, 3, scaling=16.0),
    "softmax of the chosen": Router(6, 3, Scoring.SOFTMAX_OF_CHOSEN),
    "groups by best": Router(8, 3, n_group=4, topk_group=2, scaling=4.0),
    "one group kept": Router(8, 2, n_group=4, topk_group=1),
    "sigmoid": Router(8, 3, Scoring.SIGMOID, correction_bias=True),
    "sigmoid groups": Router(
        12, 4, Scoring.SIGMOID, norm_power=1.0, norm_epsilon=1e-20, scaling=2.5, n_group=4, topk_group=2,
        group_score=GroupScore.TOP2_SUM, correction_bias=True,
    ),
    "groups of one": Router(
        4, 2, Scoring.SIGMOID, n_group=4, topk_group=3, group_score=GroupScore.TOP2_SUM, correction_bias=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, -3.0])  # a negative shift makes every biased score negative
@pytest.mark.parametrize("name", ROUTERS)
def test_a_rule_is_its_plain_lines(name: str, shift: float) -> None:
    router = ROUTERS[name]
    torch.manual_seed(len(name))
    x, weight = torch.randn(40, 16), torch.randn(router.experts, 16) * 0.5
    bias = torch.randn(router.experts) * 0.5 + shift if router.correction_bias else None
    chosen, weights, _ = route(x, weight, bias, router)
    plain_bias = [0.0] * router.experts if bias is None else bias.tolist()
    for token, logits in enumerate((x.double() @ weight.double().T).tolist()):
        expected, expected_weights = plain(logits, plain_bias, router)
        assert chosen[token].tolist() == expected
        assert weights[token].tolist() == pytest.approx(expected_weights, rel=1e-5)


def routed(logits: list[float], router: Router, bias: list[float] | None = None) -> tuple[list[int], list[float]]:
    """One token whose hidden state is its logits."""
    weight = torch.eye(len(logits))
    given = None if bias is None else torch.tensor(bias)
    chosen, weights, _ = route(torch.tensor([logits]), weight, given, router)
    return chosen[0].tolist(), weights[0].tolist()


def test_by_hand_softmax() -> None:
    assert routed(LN, Router(4, 2)) == ([0, 1], pytest.approx([0.4, 0.3]))
    assert routed(LN[::-1], Router(4, 2)) == ([3, 2], pytest.approx([0.4, 0.3]))
    assert routed(LN, Router(4, 2, norm_power=1.0)) == ([0, 1], pytest.approx([4 / 7, 3 / 7]))
    assert routed(LN, Router(4, 2, norm_power=2.0)) == ([0, 1], pytest.approx([0.8, 0.6]))
    assert routed(LN, Router(4, 2, scaling=16.0)) == ([0, 1], pytest.approx([6.4, 4.8]))
    assert routed(LN, Router(4, 2, Scoring.SOFTMAX_OF_CHOSEN)) == ([0, 1], pytest.approx([4 / 7, 3 / 7]))


def test_by_hand_groups() -> None:
    logits = [LN[0], LN[3], LN[1], LN[2]]  # .4 .1 | .3 .2
    best = Router(4, 2, n_group=2, topk_group=1)
    assert routed(logits, best) == ([0, 1], pytest.approx([0.4, 0.1]))  # the group of the best expert
    level = [-2.0, 2.0, 0.0, 1.0]  # sigmoid: .119 .881 | .5 .731
    two = Router(4, 2, Scoring.SIGMOID, n_group=2, topk_group=1, group_score=GroupScore.TOP2_SUM, correction_bias=True)
    expected = [1 / (1 + math.exp(-1)), 0.5]
    assert routed(level, two, [0.0] * 4) == ([3, 2], pytest.approx(expected))  # the group with the better pair


def test_by_hand_the_bias_picks_and_does_not_weigh() -> None:
    router = Router(3, 1, Scoring.SIGMOID, correction_bias=True)
    assert routed([2.0, 0.0, 1.0], router, [0.0, 5.0, 0.0]) == ([1], pytest.approx([0.5]))


def test_by_hand_sparsemixer() -> None:
    """A rival is no further from the best than 2 x 0.1 of the larger of both; the first is out when the second is."""
    router = Router(4, 2, Scoring.SPARSEMIXER, jitter=0.1)
    e = math.exp
    first, second = e(2.0) / (e(2.0) + e(1.7)), e(1.7) / (e(1.7) + e(1.5))
    assert routed([1.7, 1.0, 2.0, 1.5], router) == ([2, 0], pytest.approx([first, second]))
    assert routed([1.7, 1.0, 2.0, 1.5], Router(4, 2, Scoring.SPARSEMIXER)) == ([2, 0], [1.0, 1.0])
    assert routed([-1.0, -1.1, -3.0], router)[0] == [0, 1]  # the size of a negative logit counts


def test_large_logits_are_told_apart_where_their_sigmoids_are_not() -> None:
    for scoring in (Scoring.SIGMOID, Scoring.SIGMOID_INPUT):
        assert routed([40.0, 60.0, 50.0], Router(3, 2, scoring)) == ([1, 2], [1.0, 1.0])


def test_a_cap_bends_the_logits_before_all_else() -> None:
    capped = [2 * math.tanh(x / 2) for x in LN]
    expected = [1 / (1 + math.exp(-x)) for x in capped[:2]]
    assert routed(LN, Router(4, 2, Scoring.SIGMOID, softcap=2.0)) == ([0, 1], pytest.approx(expected))


def test_dropped_groups_stay_out_when_every_biased_score_is_negative() -> None:
    router = Router(4, 2, Scoring.SIGMOID, n_group=2, topk_group=1, correction_bias=True)
    assert routed([3.0, -3.0, 0.0, 0.0], router, [-5.0] * 4)[0] == [0, 1]


def test_weights_are_float32_and_choices_ignore_the_precision_of_the_rest() -> None:
    x, weight = torch.randn(5, 16, dtype=torch.bfloat16), torch.randn(6, 16)
    chosen, weights, _ = route(x, weight, None, Router(6, 2))
    again, same, _ = route(x.float(), weight, None, Router(6, 2))
    assert weights.dtype is torch.float32
    assert torch.equal(chosen, again) and torch.equal(weights, same)


def test_deepseek_v2_normalises_instead_of_scaling() -> None:
    """The vendor's rule; transformers 5.23 ignores the flag, so no model of its can show it."""
    config = {
        "architectures": ["DeepseekV2ForCausalLM"], "n_routed_experts": 4, "num_experts_per_tok": 2,
        "routed_scaling_factor": 16.0, "norm_topk_prob": True,
    }  # fmt: skip
    layer = read_spec(config).layers[0].ffn
    assert isinstance(layer, Mixture)
    assert routed(LN, layer.router) == ([0, 1], pytest.approx([4 / 7, 3 / 7]))
    layer = read_spec(config | {"num_experts_per_tok": 1}).layers[0].ffn  # a single weight would become 1
    assert isinstance(layer, Mixture)
    assert routed(LN, layer.router) == ([0], pytest.approx([6.4]))


def test_by_hand_a_full_expert_weighs_nothing_for_later_tokens() -> None:
    """In the order of the tokens, and of one token's ranks; what is chosen stays, and the weights of the others."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    chosen, weights, _ = route(logits, torch.eye(3), None, Router(3, 1, capacity=1))
    assert chosen[:, 0].tolist() == [0, 0, 1, 2]
    assert (weights[:, 0] > 0).tolist() == [True, False, True, True]
    free = route(logits, torch.eye(3), None, Router(3, 1)).topk_weights
    assert torch.equal(weights[[0, 2, 3]], free[[0, 2, 3]])
    both = route(logits, torch.eye(3), None, Router(3, 2, capacity=2)).topk_weights
    assert (both > 0).tolist() == [[True, True], [True, True], [False, True], [True, False]]


def test_a_bias_of_the_product_is_part_of_the_logits() -> None:
    x, weight, bias = torch.randn(5, 16), torch.randn(6, 16), torch.randn(6)
    found = route(x, weight, None, Router(6, 1, bias=True), bias)
    assert torch.allclose(found.logits, x @ weight.T + bias, atol=1e-5)

"""The weighted sum of experts: by hand, in rank order, one token or many."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from moecli.checkpoint.reading import read_slice, stored_slice
from moecli.engine.load import open_model
from moecli.experts.store import Group, Statistics, moe_forward
from moecli.kernels.linear import ACTIVATIONS, Expert, expert_outputs, feed_forward
from moecli.model.spec import Activation
from moecli.model.tensors import EXPERT_MATRICES
from tests.support.checkpoints import make, write

WIDTH, INNER, EXPERTS, ACTIVE = 16, 12, 6, 3
Locate = Callable[[int], Expert]


@pytest.fixture
def experts() -> list[Expert]:
    torch.manual_seed(0)
    shapes = (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)
    return [tuple(torch.randn(shape) * 0.3 for shape in shapes) for _ in range(EXPERTS)]


def routing(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(tokens)
    chosen = torch.stack([torch.randperm(EXPERTS)[:ACTIVE] for _ in range(tokens)])
    return torch.randn(tokens, WIDTH), chosen, torch.rand(tokens, ACTIVE)


class Shelf:
    """A store that has everything at hand; with a seed, its experts arrive one after another, in any order."""

    def __init__(self, experts: Locate, seed: int | None = None) -> None:
        self.statistics = Statistics()
        self._experts, self._seed = experts, seed

    def iter_ready(self, layer: int, counts: dict[int, int], tokens: int) -> Generator[Group, None, None]:
        if self._seed is None:
            yield [(expert, self._experts(expert)) for expert in counts]
        else:
            for expert in random.Random(self._seed).sample(sorted(counts), len(counts)):
                yield [(expert, self._experts(expert))]

    def addresses(self, layer: int) -> None:
        pass


def mixed(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    store: Shelf,
    activation: Activation = Activation.SILU,
) -> torch.Tensor:
    return moe_forward(store, 0, activation, x, chosen, weights)


def plain(x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, experts: Locate) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(x.double()):
        for expert, weight in zip(chosen[token].tolist(), weights[token].double(), strict=True):
            gate, up, down = (matrix.double() for matrix in experts(expert))
            out[token] += weight * (down @ (F.silu(gate @ row) * (up @ row)))
    return out.float()


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_a_mixture_is_its_plain_sum(tokens: int, experts: list[Expert]) -> None:
    x, chosen, weights = routing(tokens)
    found = mixed(x, chosen, weights, Shelf(experts.__getitem__))
    assert torch.allclose(found, plain(x, chosen, weights, experts.__getitem__), atol=1e-5)


def test_by_hand() -> None:
    """Experts that multiply by 1, 10 and 100: relu(x) * x with unit matrices squares a positive number."""
    one = torch.ones(1, 1)
    experts = [(one, one, one * 10**power) for power in range(3)]
    chosen, weights = torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.5, 0.25], [1.0, 2.0]])
    x = torch.tensor([[2.0], [-3.0]])
    both = mixed(x, chosen, weights, Shelf(experts.__getitem__), Activation.RELU)
    assert both.tolist() == [[0.5 * 400 + 0.25 * 4], [0.0]]
    assert mixed(x[:1], chosen[:1], weights[:1], Shelf(experts.__getitem__), Activation.RELU).tolist() == [[201.0]]


def test_one_token_alone_is_as_in_a_batch(experts: list[Expert]) -> None:
    x, chosen, weights = routing(20)
    batch = mixed(x, chosen, weights, Shelf(experts.__getitem__))
    alone = [mixed(x[t : t + 1], chosen[t : t + 1], weights[t : t + 1], Shelf(experts.__getitem__)) for t in range(20)]
    assert torch.equal(torch.cat(alone), batch)


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_sum_is_in_the_order_of_the_numbers(tokens: int) -> None:
    """1e8 + 1 - 1e8 is 0 in float32, and 1 in the order of the ranks."""
    one = torch.ones(1, 1)
    parts = [(one, one, one * factor) for factor in (1e8, 1.0, -1e8)]
    chosen, weights = torch.tensor([[0, 2, 1]] * tokens), torch.ones(tokens, 3)
    found = mixed(one.expand(tokens, 1), chosen, weights, Shelf(parts.__getitem__, tokens), Activation.RELU)
    assert found.flatten().tolist() == [0.0] * tokens


def test_many_tokens_of_one_expert_are_taken_in_parts(experts: list[Expert], monkeypatch: pytest.MonkeyPatch) -> None:
    x, chosen, weights = routing(40)
    expected = mixed(x, chosen, weights, Shelf(experts.__getitem__))
    monkeypatch.setattr("moecli.experts.store.CHUNK", 3)
    assert torch.equal(mixed(x, chosen, weights, Shelf(experts.__getitem__)), expected)


@pytest.mark.parametrize("tokens", [1, 40])
def test_the_order_of_arrival_changes_no_bit(tokens: int, experts: list[Expert]) -> None:
    x, chosen, weights = routing(tokens)
    expected = mixed(x, chosen, weights, Shelf(experts.__getitem__))
    for seed in range(5):
        assert torch.equal(mixed(x, chosen, weights, Shelf(experts.__getitem__, seed)), expected)


def test_only_chosen_experts_are_asked_for_and_each_once(experts: list[Expert]) -> None:
    asked: list[int] = []

    def fetch(expert: int) -> Expert:
        asked.append(expert)
        return experts[expert]

    x, _, weights = routing(8)
    mixed(x, torch.tensor([[4, 1, 2]] * 8), weights, Shelf(fetch))
    assert asked == [1, 2, 4]


def test_half_precision_is_summed_in_float32(experts: list[Expert]) -> None:
    """A thousand equal parts of 1/1000 would stall in bfloat16."""
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    parts = 1000
    chosen, weights = torch.arange(parts)[None].expand(2, -1), torch.full((2, parts), 1 / parts)
    for tokens in (1, 2):
        found = mixed(
            one.expand(tokens, 1),
            chosen[:tokens],
            weights[:tokens],
            Shelf(lambda _: (one, one, one)),
            Activation.RELU,
        )
        assert found.dtype is torch.float32
        assert found.flatten().tolist() == pytest.approx([1.0] * tokens, abs=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_and_separate_matrices_agree(activation: Activation, experts: list[Expert]) -> None:
    x = torch.randn(7, WIDTH)
    gate, up, down = experts[0]
    fused = feed_forward(x, torch.cat((gate, up)), down, activation)
    assert torch.allclose(expert_outputs(x, experts[:1], activation)[0], fused, atol=1e-6)


def test_activations_are_what_their_names_say() -> None:
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    cubic = torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    expected = {
        Activation.SILU: x / (1 + torch.exp(-x)),
        Activation.GELU: x * (1 + torch.erf(x / 2**0.5)) / 2,
        Activation.GELU_TANH: x * (1 + cubic) / 2,
        Activation.RELU: x.clamp(min=0),
    }
    for activation, values in expected.items():
        assert torch.allclose(ACTIVATIONS[activation](x), values, atol=1e-12)


@pytest.mark.parametrize("layout", ["published", "fused"])
@pytest.mark.parametrize("family", ["mixtral", "dbrx", "olmoe"])
def test_each_slice_is_the_matrix_of_its_expert(family: str, layout: str, tmp_path: Path) -> None:
    """Which part of which tensor is whose gate, up and down; in place, and read in another precision."""
    model = make(family)
    state = model.state_dict()
    weights = open_model(write(model, tmp_path, layout)).weights
    count = weights.spec.mixtures[1][1].router.experts
    if family == "dbrx":
        mlp = "transformer.blocks.1.ffn.experts.mlp."
        gate, up, down = (state[mlp + name].unflatten(0, (count, -1)) for name in ("w1", "v1", "w2"))
        expected = {"gate": gate, "up": up, "down": down.transpose(1, 2)}
    else:
        gate, up = state["model.layers.1.mlp.experts.gate_up_proj"].chunk(2, dim=1)
        expected = {"gate": gate, "up": up, "down": state["model.layers.1.mlp.experts.down_proj"]}
    for expert, matrix in product(range(count), EXPERT_MATRICES):
        part = weights.expert(1, expert, matrix)
        assert torch.equal(stored_slice(weights.checkpoint, part), expected[matrix][expert])
        half = read_slice(weights.checkpoint, part, torch.bfloat16)
        assert torch.equal(half, expected[matrix][expert].to(torch.bfloat16))

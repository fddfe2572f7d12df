"""Experts that stay in memory: where their matrices lie, for a native call that takes all of a layer at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moecli.checkpoint.reading import stored_slice
from moecli.errors import CheckpointError
from moecli.experts.gpu_offloaded import _bytes
from moecli.experts.resident import ResidentExperts, checkpoint_experts, packed_experts, store_experts
from moecli.experts.store import Statistics
from moecli.model.tensors import EXPERT_MATRICES
from moecli.store.progress import silent
from moecli.store.source import open_source
from tests.support.checkpoints import make, write
from tests.support.stores import Stores, experts_in


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["q4", "bf16"])
def test_addresses_are_those_of_gate_up_and_down(dtype: str, stores: Stores) -> None:
    store = stores("mixtral", dtype)
    experts = store_experts(store, 0, silent)
    for layer, mixture in store.spec.mixtures:
        found, record = experts.addresses(layer), store.record(layer)
        assert found is not None and found.shape == (mixture.router.experts, 3)
        offsets = [record.fields[name].offset for name in EXPERT_MATRICES]
        first = int(found[0, 0])
        for expert, places in enumerate(found.tolist()):
            assert places == [first + expert * record.stride + offset for offset in offsets]


@pytest.mark.parametrize("dtype", ["q4", "bf16"])
def test_experts_packed_now_are_those_of_a_store(dtype: str, stores: Stores) -> None:
    """Every byte of them, each told of when it is done; each is looked up once."""
    store = stores("qwen2_moe", dtype)
    weights, told = open_source(store.folder.parent / "qwen2_moe"), list[tuple[int, int]]()
    found = packed_experts(weights, dtype, 12345, lambda *each: told.append(each))
    stride, count = store.record(0).stride, experts_in(store)
    assert told == [((number + 1) * stride, count * stride) for number in range(count)]
    assert (found.dtype, found.statistics) == (dtype, Statistics(budget_bytes=12345))
    mapped = store_experts(store, 7, silent)
    assert (mapped.dtype, mapped.statistics) == (dtype, Statistics(budget_bytes=7))
    for layer, mixture in store.spec.mixtures:
        wanted = dict.fromkeys(range(mixture.router.experts), 1)
        for one, other in zip(*(each.iter_ready(layer, wanted, 1) for each in (found, mapped)), strict=True):
            assert [expert for expert, _ in one] == [expert for expert, _ in other] == list(wanted)
            for (_, ours), (_, theirs) in zip(one, other, strict=True):
                assert isinstance(ours, tuple) and isinstance(theirs, tuple)
                for matrix, expected in zip(ours, theirs, strict=True):
                    assert matrix.shape == expected.shape
                    assert bytes(_bytes(matrix).numpy()) == bytes(_bytes(expected).numpy())
    assert found.statistics.hits == mapped.statistics.hits == count and found.statistics.misses == 0


def test_an_expert_is_looked_up_once_and_all_come_in_one_group(stores: Stores) -> None:
    spec, asked = stores("mixtral", "q4").spec, list[tuple[int, int]]()

    def locate(layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        asked.append((layer, expert))
        return tuple(torch.full((2, 2), 10.0 * layer + expert) for _ in range(3))

    found = ResidentExperts(spec, "fp32", locate)
    for _ in range(2):
        (group,) = found.iter_ready(1, {4: 2, 0: 1}, 3)
        assert [(expert, float(matrices[0][0, 0])) for expert, matrices in group] == [(4, 14.0), (0, 10.0)]
    assert asked == [(1, 4), (1, 0)] and found.statistics.hits == 4 and found.statistics.budget_bytes == 0


def test_a_weight_that_the_format_cannot_hold_is_named(tmp_path: Path) -> None:
    model = make("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3][0, 0] = torch.inf
    weights = open_source(write(model, tmp_path))
    with pytest.raises(CheckpointError, match=r"^down of expert 3 of layer 1: "):
        packed_experts(weights, "q4", 0, silent)


def test_what_fits_is_brought_into_memory_first(stores: Stores) -> None:
    """All experts of a store or of a checkpoint, in place in their files; told by bytes."""
    store = stores("mixtral", "q4")
    weights = open_source(store.folder.parent / "mixtral")
    sizes = [store.experts(layer).size for layer, _ in store.spec.mixtures]
    tensors = sum(tensor.size for tensor in weights.expert_tensors())
    for load, total in (
        (lambda told: store_experts(store, 9, told), sum(sizes)),
        (lambda told: checkpoint_experts(weights, 9, told), tensors),
    ):
        told: list[tuple[int, int]] = []
        found = load(lambda *each, told=told: told.append(each))
        assert told and told[-1] == (total, total) and found.statistics == Statistics(budget_bytes=9)
    (group,) = found.iter_ready(1, {3: 1}, 1)
    (expert, matrices) = group[0]
    assert expert == 3 and found.dtype == weights.dtype and isinstance(matrices, tuple)
    for name, matrix in zip(EXPERT_MATRICES, matrices, strict=True):
        assert torch.equal(matrix, stored_slice(weights.checkpoint, weights.expert(1, 3, name)))

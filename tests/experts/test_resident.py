"""Experts that stay in memory: where their matrices lie, for a native call that takes all of a layer at once."""

from __future__ import annotations

import pytest

from moecli.experts.resident import store_experts
from moecli.model.tensors import EXPERT_MATRICES
from tests.support.stores import Stores


@pytest.mark.slow
def test_addresses_are_those_of_gate_up_and_down(stores: Stores) -> None:
    store = stores("mixtral", "q4")
    experts = store_experts(store, 0)
    for layer, mixture in store.spec.mixtures:
        found, record = experts.addresses(layer), store.record(layer)
        assert found is not None and found.shape == (mixture.router.experts, 3)
        offsets = [record.fields[name].offset for name in EXPERT_MATRICES]
        first = int(found[0, 0])
        for expert, places in enumerate(found.tolist()):
            assert places == [first + expert * record.stride + offset for offset in offsets]


@pytest.mark.slow
def test_what_is_not_packed_has_no_addresses(stores: Stores) -> None:
    store = stores("mixtral", "bf16")
    assert store_experts(store, 0).addresses(store.spec.mixtures[0][0]) is None

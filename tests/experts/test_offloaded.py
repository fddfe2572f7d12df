"""Placement never changes a bit: any budget, policy, order of arrival and size of piece gives the same logits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from moecli.engine.decoder import Decoder
from moecli.engine.router import Routing
from moecli.engine.weights import store_weights
from moecli.errors import CheckpointError
from moecli.experts.offloaded import OffloadedExperts
from moecli.experts.policies import POLICIES
from moecli.experts.readers import PendingRead, Range, Readers
from moecli.formats import FORMATS
from moecli.planning.memory import estimate_memory
from moecli.planning.placement import place
from moecli.store import expert_record
from moecli.store.packed import PackedStore
from tests.support.checkpoints import make, prompt, write
from tests.support.running import greedy, load, score
from tests.support.stores import Stores, decoder, experts_in, packed, plan_for

FAMILIES = ("mixtral", "deepseek_v2", "dbrx", "gpt_oss", "qwen2_moe", "switch_transformers")
IDS = prompt(40)


def tiered(store: PackedStore, slots: int, policy: str = "lru", readers: Readers | None = None) -> Decoder:
    return Decoder(store.spec, store_weights(store), OffloadedExperts(store, slots, policy, readers), 256)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_budget_gives_the_same_bits(family: str, dtype: str, stores: Stores) -> None:
    store = stores(family, dtype)
    everything = decoder(store, None)
    logits, ids = score(everything, IDS), greedy(everything, IDS, 12)
    assert everything.experts.statistics.misses == 0
    for slots in (0, 1, experts_in(store) // 4, experts_in(store) // 2, experts_in(store) - 1):
        streamed = decoder(store, slots)
        assert torch.equal(score(streamed, IDS), logits)
        assert greedy(streamed, IDS, 12) == ids
        assert streamed.experts.statistics.misses > 0
    on_the_fly = load(store.folder.parent / family, dtype)
    assert torch.equal(score(on_the_fly, IDS), logits)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_bits(policy: str, stores: Stores) -> None:
    store = stores("mixtral", "q4")
    streamed = tiered(store, 4, policy)
    for chunk in (40, 1):
        assert torch.equal(score(streamed, IDS, chunk), score(decoder(store, None), IDS, chunk))


class UnevenReaders(Readers):
    """Real reads that arrive in any order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        super().__init__()

    def read(self, ranges: Iterable[Range], arrived: Callable[[PendingRead], None] | None = None) -> PendingRead:
        delay = self._random.random() * 0.01

        def late(pending: PendingRead) -> None:
            time.sleep(delay)
            if arrived is not None:
                arrived(pending)

        return super().read(ranges, late)


@pytest.mark.parametrize("seed", range(3))
def test_every_order_of_arrival_gives_the_same_bits(seed: int, stores: Stores) -> None:
    store = stores("qwen2_moe", "q8")
    for chunk in (40, 1):
        expected = score(decoder(store, None), IDS, chunk)
        assert torch.equal(score(tiered(store, 7, readers=UnevenReaders(seed)), IDS, chunk), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mixtral", {"hidden_size": 128, "intermediate_size": 448}),
        ("switch_transformers", {"d_model": 128, "d_ff": 448}),  # of two matrices
    ],
)
def test_large_experts_pass_in_pieces(
    family: str, sizes: dict[str, int], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits from disk, from slots and from mapped memory; close to what whole experts give."""
    folder = write(make(family, **sizes), tmp_path / "model")
    store = packed(folder, tmp_path / "store", dtype)
    whole = score(decoder(store, None), IDS)
    monkeypatch.setattr(expert_record, "PIECE", 2**15)
    monkeypatch.setattr("moecli.formats.blocks._WEIGHTS", 2**13)
    pieces = store.record(store.spec.mixtures[0][0]).pieces()
    assert (len(pieces) == 1) == (dtype in ("nf4", "int8"))
    expected, one = score(decoder(store, None), IDS), score(decoder(store, None), IDS, 1)
    # Rounding between the projections is coarser in pieces; a torn router may turn.
    assert (expected - whole).norm(dim=-1).median() <= 0.05 * whole.norm(dim=-1).median()
    for slots in (0, 3):
        assert torch.equal(score(decoder(store, slots), IDS), expected)
        assert torch.equal(score(decoder(store, slots), IDS, 1), one)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_threads_and_chunks_agree_within_rounding(family: str, stores: Stores) -> None:
    store = stores(family, "fp32")
    expected = score(decoder(store, None), IDS)
    threads = torch.get_num_threads()
    try:
        for count, chunk in ((1, 40), (2, 40), (1, 7), (2, 13)):
            torch.set_num_threads(count)
            assert torch.allclose(score(decoder(store, 3), IDS, chunk), expected, rtol=0, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


class Used:
    """Which experts were chosen, by layer."""

    generated = False

    def __init__(self) -> None:
        self.experts: set[tuple[int, int]] = set()

    def tokens(self, ids: torch.Tensor) -> None:
        self.experts.clear()

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        self.experts.update((layer, expert) for expert in routing.topk_ids.flatten().tolist())


@pytest.mark.parametrize("slots", [0, 1, 5])
def test_a_prompt_reads_each_expert_once_whatever_its_chunks(slots: int, stores: Stores) -> None:
    store, used = stores("mixtral", "q4"), Used()
    streamed, ids = tiered(store, slots), torch.tensor(IDS * 5)
    streamed.forward(ids, streamed.new_cache(len(ids), 7), used)
    found = streamed.experts.statistics
    assert (found.hits, found.misses) == (0, len(used.experts))
    assert found.bytes_read == found.misses * store.record(0).stride


def test_a_step_of_a_few_tokens_asks_for_each_expert_once(stores: Stores) -> None:
    store, used = stores("mixtral", "q8"), Used()
    streamed = tiered(store, 0)
    if streamed.decode_step is None:
        pytest.skip("no native library: a prompt of a few tokens is as any other")
    streamed.forward(torch.tensor(IDS[:6]), streamed.new_cache(10, 10), used)
    assert streamed.experts.statistics.misses == len(used.experts) > 4


def test_a_budget_below_one_tokens_demand_still_hits(stores: Stores) -> None:
    """A token takes 2 experts in each of 2 layers; with one slot per layer a repeating text hits."""
    store = stores("mixtral", "q4")
    for policy in POLICIES:
        streamed = tiered(store, 2, policy)
        score(streamed, IDS[:1] * 30, 1)
        found = streamed.experts.statistics
        assert found.hits >= 0.3 * (found.hits + found.misses)


def test_an_interrupted_pass_leaves_no_wrong_bytes_behind(stores: Stores) -> None:
    store = stores("mixtral", "q4")
    expected = score(decoder(store, None), IDS, 1)
    streamed = tiered(store, 5)
    experts = streamed.experts
    assert isinstance(experts, OffloadedExperts)
    for layer in (0, 1):
        for wanted in ({0: 1, 1: 1, 2: 1}, {3: 1, 4: 1}):
            ready = experts.iter_ready(layer, wanted, 1)
            next(ready)
            with pytest.raises(KeyboardInterrupt):
                ready.throw(KeyboardInterrupt)
    assert torch.equal(score(streamed, IDS, 1), expected)


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    store = packed(write(make("mixtral"), tmp_path / "model"), tmp_path / "store")
    streamed = tiered(store, 2)
    path = store.experts(1).path
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut short") as caught:
        score(streamed, IDS)
    assert caught.value.hint is not None and "verify" in caught.value.hint
    path.write_bytes(content)
    assert torch.equal(score(streamed, IDS), score(decoder(store, None), IDS))


def test_the_chunk_depends_on_what_fits_not_on_the_budget_for_experts(
    stores: Stores,
) -> None:
    store = stores("mixtral", "q4")
    assert {plan_for(store, slots).memory.chunk for slots in (None, 0, 3)} == {256}


def test_slots_are_what_the_plan_says(stores: Stores) -> None:
    store = stores("dbrx", "q8")
    for slots in (0, 1, 5):
        plan = plan_for(store, slots)
        assert plan.ram.experts == slots
        assert plan.ram.total <= plan.ram_budget
        assert decoder(store, slots).experts.statistics.budget_bytes == plan.ram.expert_bytes
    assert not place(estimate_memory(store.spec, "q8", 256), plan.least_ram - 1).runs

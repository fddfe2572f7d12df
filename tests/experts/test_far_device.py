"""The hybrid path in two memories: numbers of one device never meet the other's, and every wait is needed.

The device does its work late and in streams (`tests/support/far_device.py`), and copies are those of a real card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moecli.engine.decoder import Decoder
from moecli.engine.weights import store_weights
from moecli.experts.copies import StreamCopies
from moecli.experts.gpu_offloaded import Capacity, GpuOffloadedExperts
from moecli.experts.rates import Pace, Rates
from moecli.store import expert_record
from moecli.store.packed import PackedStore
from tests.support.checkpoints import make, prompt, write
from tests.support.far_device import FAR, far_device
from tests.support.running import greedy, score
from tests.support.stores import decoder, packed
from tests.support.streams import Streams

pytestmark = pytest.mark.slow

IDS = prompt(16)
QUICK, SLOW = Pace(1e15, 0.0), Pace(1.0, 1.0)
COPY = Rates(1e15, SLOW, QUICK)
STAY = Rates(1.0, QUICK, SLOW)
BOTH = Rates(1e9, Pace(1e9, 0.0), QUICK)  # an expert copied for each one computed in RAM


@dataclass(frozen=True)
class Case:
    """Where the experts of the one layer are, and which of the device's streams is the later one."""

    rates: Rates
    on_device: int
    in_ram: int
    copying: float = 0.0
    computing: float = 0.0
    pieces: bool = False


# By wait: a case in which it is needed. Who waits in which function of `Copies`, and for whom where that has two.
WAITS = {
    "_on_device: ready": Case(COPY, 2, 3),
    "_upload: upload, _begin": Case(COPY, 0, 5, copying=1.0),
    "_upload_parts: upload_parts": Case(COPY, 0, 0, pieces=True),
    "_upload_parts: upload_parts, _begin": Case(COPY, 0, 2, copying=1.0),
    "_with_disk: wait": Case(COPY, 3, 1),
    "_in_ram: wait": Case(BOTH, 2, 3),
}
# By what is not told: who waits for it waits for nothing.
UNTOLD = {
    "what is computed": ("used", Case(COPY, 0, 5, copying=1.0)),
    "what a download writes": ("download", Case(BOTH, 2, 3)),
}
Store = Callable[[bool], PackedStore]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One layer of eight experts, three of them for each token; whole, or large enough to pass in pieces."""
    root = tmp_path_factory.mktemp("far")
    sizes = {"num_hidden_layers": 1, "num_local_experts": 8, "num_experts_per_tok": 3}
    found = {
        pieces: packed(write(make("mixtral", **sizes, **more), root / f"{pieces}"), root / f"{pieces}-fp32", "fp32")
        for pieces, more in ((False, {}), (True, {"intermediate_size": 192}))
    }
    return found.__getitem__


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_record, "PIECE", 2**14)
    monkeypatch.setattr("moecli.formats.blocks._WEIGHTS", 2**10)


def far_decoder(store: PackedStore, case: Case) -> Decoder:
    dense = store_weights(store, FAR)
    capacity = Capacity(FAR, dense.dtype, case.on_device, case.in_ram)
    experts = GpuOffloadedExperts(
        store.spec, store.layout.records, capacity, "lru", store=store, rates=case.rates, copies=StreamCopies
    )
    return Decoder(store.spec, dense, experts, 256)


def scores(found: Decoder) -> Tensor:
    """After a prompt, then token by token: as the host has them."""
    return torch.cat([score(found, IDS[:8]).cpu(), score(found, IDS, 1).cpu()])


@cache
def host_scores(folder: Path) -> Tensor:
    """Those of the host alone."""
    return scores(decoder(PackedStore.open(folder), None))


def error(store: PackedStore, case: Case, streams: Streams) -> float:
    """How far the device's logits are from the host's, as a share."""
    with far_device(streams):
        found = scores(far_decoder(store, case))
    expected = host_scores(store.folder)
    return float((found - expected).norm() / expected.norm())


def test_a_far_device_refuses_the_host() -> None:
    with far_device():
        here, there = torch.ones(3, 4), torch.ones(3, 4, device=FAR)
        assert torch.equal((there @ there.T).cpu(), here @ here.T)
        assert torch.equal(here.to(FAR)[1:, :2].contiguous().cpu(), here[1:, :2])
        for mixed in (lambda: here + there, lambda: there.add_(here), lambda: there[torch.tensor([0])]):
            with pytest.raises(RuntimeError, match="meets one of the device"):
                mixed()
        for look in (there.numpy, there[0, 0].item, lambda: float(there[0, 0]), lambda: bool(there.sum() > 0)):
            with pytest.raises((RuntimeError, TypeError), match="meta"):
                look()
    with pytest.raises(NotImplementedError, match="meta"):
        there.cpu()


def test_a_far_device_is_late() -> None:
    """What is queued holds garbage until somebody waits; what is given later to another stream may come first."""
    with far_device() as streams:
        slot, source = torch.zeros(4, device=FAR), torch.ones(4)
        copying = torch.cuda.Stream(FAR)
        with torch.cuda.stream(copying):
            slot.copy_(source, non_blocking=True)
            arrived = copying.record_event()
        early = (slot * 2).cpu()  # of zeros: nobody waited for the copy
        source.fill_(3)  # too soon
        torch.cuda.current_stream(FAR).wait_event(arrived)
        assert early.tolist() == [0] * 4 and slot.cpu().tolist() == [3] * 4
        fresh = torch.empty(4, device=FAR)
        assert fresh.cpu().isnan().all() and not streams.waits


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", [Case(COPY, 2, 3), Case(STAY, 2, 3), Case(BOTH, 2, 3), Case(BOTH, 1, 1, pieces=True)])
def test_the_text_is_that_of_the_host(case: Case, seed: int, stores: Store) -> None:
    """Whatever is done when."""
    store = stores(case.pieces)
    with far_device(Streams(computing=0.4 * seed, copying=0.8 - 0.4 * seed, seed=seed)):
        found = greedy(far_decoder(store, case), IDS[:8], 12)
    assert found == greedy(decoder(store, None), IDS[:8], 12)


@pytest.mark.parametrize("wait", WAITS)
def test_every_wait_is_needed(wait: str, stores: Store) -> None:
    case = WAITS[wait]
    store, made = stores(case.pieces), set[str]()
    for dropped in ("", wait):
        streams = Streams(case.computing, case.copying)
        streams.dropped = dropped
        found = error(store, case, streams)
        made |= streams.waits
        assert (found < 1e-5) == (not dropped), f"{found} without {dropped or 'nothing'}"
    assert wait in made and made <= WAITS.keys(), "a wait that no case shows to be needed"


@pytest.mark.parametrize("untold", UNTOLD)
def test_every_event_is_needed(untold: str, stores: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is if the store forgets to tell."""
    method, case = UNTOLD[untold]
    before = getattr(StreamCopies, method)

    def forgetful(self: StreamCopies, slot: int, *rest: object) -> None:
        known = dict(self._computed), dict(self._busy)
        before(self, slot, *rest)
        self._computed, self._busy = known

    monkeypatch.setattr(StreamCopies, method, forgetful)
    assert not error(stores(False), case, Streams(case.computing, case.copying)) < 1e-5


@pytest.mark.parametrize("dropped", ["", "iter_ready: synchronize"])
def test_an_interrupted_pass_leaves_nothing_under_way(dropped: str, stores: Store) -> None:
    """Experts that were computed with are not told to be used: their slots are free once all is done."""
    store = stores(False)
    case = Case(COPY, 0, 5, copying=1.0)
    streams = Streams(case.computing, case.copying)
    streams.dropped = dropped
    with far_device(streams):
        found = far_decoder(store, case)
        score(found, IDS, 1)  # all that there is room for is in RAM
        experts = found.experts
        x = torch.ones(1, store.spec.hidden_size, device=FAR)
        held = []
        for wanted in range(8):
            ready = experts.iter_ready(0, {wanted: 1}, 1)
            ((_, matrices),) = next(ready)
            if matrices[0].device == FAR:
                held.append((wanted, x @ matrices[0].T))
            with pytest.raises(KeyboardInterrupt):
                ready.throw(KeyboardInterrupt)
        expected = decoder(store, None).experts
        wrong = 0
        for wanted, product in held:
            ((_, matrices),) = next(expected.iter_ready(0, {wanted: 1}, 1))
            wrong += not torch.allclose(product.cpu(), torch.ones(1, store.spec.hidden_size) @ matrices[0].T, rtol=1e-4)
    assert len(held) > 3 and (wrong > 0) == bool(dropped)

"""Shards that come one by one and are deleted at once give the same store, with little on disk meanwhile."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from moecli.checkpoint.headers import read_header
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from moecli.model.families import load_config
from moecli.store.incremental import ShardPacker, packing_shards
from moecli.store.jobs import jobs
from moecli.store.journal import occupied
from moecli.store.layout import choose_layout
from moecli.store.manifest import FILE, Origin
from moecli.store.packed import PackedStore
from moecli.store.source import announced, header_fingerprint
from moecli.store.verify import verify
from moecli.store.write import partial_folder
from tests.support.processes import in_child
from tests.support.stores import contents, deal, packed

pytestmark = pytest.mark.slow

ORIGIN = Origin("five-layers", "someone/five-layers", "c0ffee", None, "")


class Hub:
    """A folder that stands for the Hub: headers can be read, shards copied from it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.fetched: list[str] = []
        cache.mkdir(exist_ok=True)
        shutil.copy(folder / "config.json", cache)

    def headers(self) -> list[StoredTensor]:
        """As `read_remote` gives them: paths are bare names."""
        shards = self.folder.glob("*.safetensors")
        return [
            StoredTensor(each.name, each.dtype, each.shape, Path(shard.name), each.offset, each.size)
            for shard in sorted(shards)
            for each in read_header(shard).values()
        ]

    def fetch(self, shard: str) -> Path:
        self.fetched.append(shard)
        return Path(shutil.copy(self.folder / shard, self.cache / shard))


def pull(hub: Hub, target: Path, dtype: str = "q4", watch=lambda packer: None) -> PackedStore:
    """Shard in, records out, shard deleted."""
    headers = hub.headers()
    weights = announced("five-layers", load_config(hub.cache / "config.json"), lambda: by_name(headers))
    origin = Origin(ORIGIN.model, ORIGIN.repo, ORIGIN.revision, None, header_fingerprint(headers))
    with packing_shards(target, weights, choose_layout(weights, dtype), origin) as packer:
        for shard in packer.pending:
            path = hub.fetch(shard)
            packer.take(shard, path)
            watch(packer)
            path.unlink()
        return packer.finish(hub.folder)


def by_name(tensors: list[StoredTensor]) -> dict[str, StoredTensor]:
    return {each.name: each for each in tensors}


def same_weights(one: PackedStore, other: PackedStore) -> bool:
    """All but what the manifests say of their origins."""
    return contents(one.folder, but=FILE) == contents(other.folder, but=FILE)


@pytest.fixture(params=["by layer", 0, 1])
def hub(request, checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = checkpoint if request.param == "by layer" else deal(checkpoint, tmp_path / "strewn", 7, request.param)
    yield Hub(folder, tmp_path / "cache")


def test_pulled_and_packed_are_equal(hub, store, tmp_path):
    pulled = pull(hub, tmp_path / "store")
    assert same_weights(pulled, store) and verify(pulled.folder, lambda done, total: None) == []
    assert sorted(hub.fetched) == sorted(set(hub.fetched)) and not list(hub.cache.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["nf4", "bf16"])
def test_in_other_formats_too(hub, checkpoint, dtype, tmp_path):
    assert same_weights(pull(hub, tmp_path / "store", dtype), packed(checkpoint, tmp_path / "packed", dtype))


def test_little_is_put_aside(checkpoint, tmp_path):
    """In shards by layer nothing waits; where everything is strewn, only parts of what is stacked."""
    left: list[int] = []

    def look(packer: ShardPacker) -> None:
        left.append(sum(map(occupied, partial_folder(tmp_path / "store").glob("left-over-*"))))

    pull(Hub(checkpoint, tmp_path / "cache"), tmp_path / "store", watch=look)
    assert left == [0] * 6
    shutil.rmtree(tmp_path / "store")
    left.clear()
    strewn = deal(checkpoint, tmp_path / "strewn", 7, 3)
    stacked = sum(tensor.size for tensor in Hub(strewn, tmp_path / "cache").headers() if "self_attn" in tensor.name)
    pull(Hub(strewn, tmp_path / "cache"), tmp_path / "store", watch=look)
    assert 0 < max(left) < stacked + 7 * 8192 and left[-1] == 0


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_in_the_same_store(seed, checkpoint, store, tmp_path):
    strewn, target = deal(checkpoint, tmp_path / "strewn", 7, seed), tmp_path / "store"
    chance = random.Random(seed)
    for _ in range(6):
        if not target.exists():
            in_child(lambda: pull(Hub(strewn, tmp_path / "cache"), target), kill_after=chance.uniform(0.02, 0.5))
    if not target.exists():
        pull(Hub(strewn, tmp_path / "cache"), target)
    (target / "lock").unlink(missing_ok=True)
    assert same_weights(PackedStore.open(target), store)


def test_shards_that_are_done_are_not_fetched_again(checkpoint, store, tmp_path):
    strewn, target, cache = deal(checkpoint, tmp_path / "strewn", 7, 5), tmp_path / "store", tmp_path / "cache"

    def stop(packer: ShardPacker) -> None:
        done, total = packer.packed
        if done > total / 2:
            raise KeyboardInterrupt

    first = Hub(strewn, cache)
    with pytest.raises(KeyboardInterrupt):
        pull(first, target, watch=stop)
    second = Hub(strewn, cache)
    assert same_weights(pull(second, target), store)
    assert len(first.fetched + second.fetched) == 7 and set(first.fetched).isdisjoint(second.fetched)


def test_a_shard_that_is_not_the_announced_one_is_refused(checkpoint, tmp_path):
    hub = Hub(checkpoint, tmp_path / "cache")
    hub.fetch = lambda shard: Path(shutil.copy(checkpoint / "model-outside.safetensors", hub.cache / shard))
    with pytest.raises(CheckpointError, match="as was announced"):
        pull(hub, tmp_path / "store")


def test_a_store_is_not_finished_early(checkpoint, tmp_path):
    hub = Hub(checkpoint, tmp_path / "cache")
    weights = announced("five-layers", load_config(hub.cache / "config.json"), lambda: by_name(hub.headers()))
    with packing_shards(tmp_path / "store", weights, choose_layout(weights, "q4"), ORIGIN) as packer:
        packer.take(packer.pending[0], hub.fetch(packer.pending[0]))
        with pytest.raises(CheckpointError, match="5 shards were not packed"):
            packer.finish(hub.folder)


def test_a_shard_without_needed_tensors_is_not_asked_for(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "source")
    import torch

    save_file({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model-buffers.safetensors")
    hub = Hub(folder, tmp_path / "cache")
    pull(hub, tmp_path / "store")
    assert "model-buffers.safetensors" not in hub.fetched and len(hub.fetched) == 6


def test_what_waits_for_others_is_put_aside_in_order(checkpoint: Path, tmp_path: Path) -> None:
    """Of a shard only what is still needed, under its own names; whatever a later one completes is deleted."""
    strewn = deal(checkpoint, tmp_path / "strewn", 7, 3)
    hub, target = Hub(strewn, tmp_path / "cache"), tmp_path / "store"
    headers = hub.headers()
    held = {shard.name: read_header(shard) for shard in strewn.glob("*.safetensors")}
    weights = announced("five-layers", load_config(hub.cache / "config.json"), lambda: by_name(headers))
    layout = choose_layout(weights, "q4")
    needs = [{part.name for source in job.sources for part in source.stored.parts} for job in jobs(weights, layout)]
    where = {tensor.name: tensor.path.name for tensor in headers}
    sources = [source for job in jobs(weights, layout) for source in job.sources]
    expected = list(dict.fromkeys(where[source.stored.name] for source in sources))
    told: list[tuple[int, int]] = []
    with packing_shards(target, weights, layout, ORIGIN) as packer:
        assert packer.pending == expected and set(expected) == set(held)
        total = sum(tensor.size for tensor in headers)
        assert packer.packed == (0, total)
        arrived: set[str] = set()
        for shard in packer.pending:
            left = packer.pending
            packer.take(shard, hub.fetch(shard), lambda *each: told.append(each))
            assert packer.pending == [name for name in left if name != shard]
            arrived |= held[shard].keys()
            done = [need for need in needs if need <= arrived]
            assert packer.packed == (sum(held[where[n]][n].size for need in done for n in need), total)
            waiting = {name for need in needs if not need <= arrived for name in need & arrived}
            aside: dict[str, bytes] = {}
            for path in partial_folder(target).glob("left-over-*"):
                assert path.name.removeprefix("left-over-") in held
                found = read_header(path)
                assert path.read_bytes()[8:26] == b'{"__metadata__":{"' and list(found) == sorted(found)
                aside |= {name: path.read_bytes()[it.offset :][: it.size] for name, it in found.items()}
                for name, it in found.items():
                    assert (it.dtype, it.shape) == (held[where[name]][name].dtype, held[where[name]][name].shape)
            assert aside.keys() >= waiting
            for name, data in aside.items():
                original = held[where[name]][name]
                assert data == (strewn / where[name]).read_bytes()[original.offset :][: original.size]
            assert not list(partial_folder(target).glob("*.growing"))
        assert packer.pending == [] and packer.packed == (total, total) == told[-1]
        assert told == sorted(told)
        packer.take(shard, hub.cache / shard)  # twice does no harm
        store = packer.finish(hub.folder)
    assert not list(store.folder.glob("left-over-*")) and not (store.folder / "journal").exists()


def test_left_overs_have_names_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    """Of shards inside folders too, and of other formats."""
    weights = announced(
        "x", load_config(checkpoint / "config.json"), lambda: by_name(Hub(checkpoint, tmp_path).headers())
    )
    with packing_shards(tmp_path / "store", weights, choose_layout(weights, "q4"), ORIGIN) as packer:
        folder = partial_folder(tmp_path / "store")
        assert packer._left_over("a.safetensors") == folder / "left-over-a.safetensors"
        assert packer._left_over("in/b.bin") == folder / "left-over-in-b.bin.safetensors"


def test_a_shard_whose_header_differs_is_refused_by_the_tensor(checkpoint: Path, tmp_path: Path) -> None:
    hub = Hub(checkpoint, tmp_path / "cache")
    headers = hub.headers()
    shard = headers[0].path.name
    changes = ({"dtype": "F16"}, {"offset": headers[0].offset + 1}, {"name": "another"})
    for number, change in enumerate(changes):
        lying = [replace(headers[0], **change), *headers[1:]]
        known = by_name(headers) | {headers[0].name: lying[0]}
        weights = announced("x", load_config(hub.cache / "config.json"), lambda known=known: known)
        layout = choose_layout(weights, "q4")
        with packing_shards(tmp_path / f"store-{number}", weights, layout, ORIGIN) as packer:
            path = hub.fetch(shard)
            with pytest.raises(CheckpointError) as refused:
                packer.take(shard, path)
        assert refused.value.message == f"{path} does not hold '{lying[0].name}' as was announced"
        assert refused.value.hint == "fetch it again"

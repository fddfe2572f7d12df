"""Shard in, records out, shard deleted: killed, crowded and cheated, it ends in the store that `pack` makes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli import settings
from moecli.checkpoint.files import SAFETENSORS
from moecli.errors import CheckpointError, ConfigError, DiskError, MoecliError, NetworkError
from moecli.hub import cache as hub_cache
from moecli.hub.download import fetch_all
from moecli.hub.manifest import RemoteFile, read_manifest
from moecli.hub.retry import RetryPolicy
from moecli.library.pull_packed import check_space, propose_packed, pull_packed
from moecli.library.resolve import resolve
from moecli.library.stores import default_folder
from moecli.model import catalog
from moecli.store.packed import PackedStore
from moecli.store.verify import verify
from moecli.store.write import partial_folder
from tests.support import hub_server
from tests.support.checkpoints import make, write
from tests.support.hub_server import Fault
from tests.support.processes import in_child
from tests.support.stores import contents, deal, packed, random_mixtral

pytestmark = pytest.mark.slow

REPO = "somebody/five-layers"
QUICK = RetryPolicy(attempts=3, first_wait=0.01)
SHARDS = 6


class Watcher:
    """Nobody looks; it counts what arrives."""

    def __init__(self) -> None:
        self.arrived = 0

    def advance(self, file: RemoteFile, size: int) -> None:
        self.arrived += size

    def found(self, file: RemoteFile, size: int) -> None:
        pass

    def wait(self, file: RemoteFile, why: str, seconds: float | None) -> None:
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 MB: a random Mixtral, a shard for each of five layers and one for the rest."""
    folder = tmp_path_factory.mktemp("source") / "five-layers"
    return random_mixtral(folder, hidden_size=192, intermediate_size=320)


@pytest.fixture(scope="module")
def strewn(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gate and down of one expert, q and k of one layer lie in different shards, and every layer in all of them."""
    return deal(checkpoint, tmp_path_factory.mktemp("strewn") / "five-layers", SHARDS, seed=4)


@pytest.fixture(scope="module")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    """As `moecli pack` makes it. Not to be changed."""
    return packed(checkpoint, tmp_path_factory.mktemp("stores") / "five-layers-q4")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch) as running:
        yield running


def publish(server: hub_server.Hub, folder: Path) -> None:
    for path in [path for path in server.files if path.startswith(f"{REPO}/")]:
        del server.files[path]
    for file in folder.iterdir():
        server.put(f"{REPO}/{file.name}", file.read_bytes())


@pytest.fixture(params=["by layer", "strewn"])
def published(request, server, checkpoint, strewn) -> Path:
    """The folder that the Hub shows, one shard a layer or every layer in all of them."""
    folder = checkpoint if request.param == "by layer" else strewn
    publish(server, folder)
    return folder


def pull(
    model: str = REPO,
    dtype: str = "q4",
    keep: bool = False,
    progress=lambda done, total: None,
    watcher: Watcher | None = None,
) -> PackedStore:
    """As the command does it."""
    plan = propose_packed(resolve(model, original=True), dtype, keep=keep)
    if plan.store is None:
        check_space(plan)
    return pull_packed(plan, watcher or Watcher(), progress, QUICK)


def same(one: PackedStore, other: PackedStore) -> bool:
    """Byte for byte, but for what the manifests say of their origins; and each is what its manifest says."""
    ours, theirs = contents(one.folder), contents(other.folder)
    ours_said, theirs_said = (json.loads(each.pop("manifest.json")) for each in (ours, theirs))
    for said in (ours_said, theirs_said):
        del said["origin"], said["digest"]
    return ours == theirs and ours_said == theirs_said and verify(one.folder, lambda done, total: None) == []


def occupied(*roots: Path) -> int:
    """What files take of the disk, in bytes; they come and go meanwhile."""
    found = 0
    for root in roots:
        for folder, _, files in os.walk(root):
            for file in files:
                if (status := hub_cache.status(Path(folder, file), follow_symlinks=False)) is not None:
                    found += status.st_blocks * 512
    return found


def disk_use() -> int:
    return occupied(settings.home(), settings.hub_cache())


def stop_at(share: float) -> Callable[[int, int], None]:
    """A progress that presses Ctrl-C when so much is packed."""

    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise KeyboardInterrupt

    return progress


def shard_bytes(server: hub_server.Hub) -> int:
    return sum(size for name, size in server.sent_of.items() if name.endswith(".safetensors"))


TARGET_NAME = "somebody--five-layers-q4"


def test_pulled_and_packed_are_equal_and_nothing_else_is_left(published, server, store):
    pulled = pull()
    assert same(pulled, store) and pulled.folder == settings.stores() / TARGET_NAME
    assert (pulled.source.repo, pulled.source.revision, pulled.source.model) == (REPO, hub_server.COMMIT, REPO)
    assert not hub_cache.repository(REPO).exists() and not partial_folder(pulled.folder).exists()
    weights = sum(file.stat().st_size for file in published.glob("*.safetensors"))
    assert weights <= shard_bytes(server) <= weights + SHARDS * 2 * 65536  # the headers, and what was in flight
    before = len(server.seen)
    assert pull().folder == pulled.folder
    assert not any(sent.get("range", "").endswith("-") for _, sent in server.seen[before:])  # headers alone


@pytest.mark.parametrize("dtype", ["nf4", "auto"])
def test_other_formats(server, strewn, checkpoint, dtype, tmp_path):
    publish(server, strewn)
    assert same(pull(dtype=dtype), packed(checkpoint, tmp_path / "x", "bf16" if dtype == "auto" else dtype))


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_an_encoder_and_its_decoder(server, kind, tmp_path):
    """In shards, or in torch's one file, as Switch is published."""
    folder = write(make("switch_transformers"), tmp_path / "source", shard="60KB" if kind == "safetensors" else None)
    if kind == "torch":
        (whole,) = folder.glob("*.safetensors")
        torch.save(load_file(whole), folder / "pytorch_model.bin")
        whole.unlink()
    publish(server, folder)
    assert same(pull(), packed(folder, tmp_path / "packed"))


def test_the_disk_holds_the_store_and_two_shards_at_most(published, server, store):
    largest = sorted((file.stat().st_size for file in published.glob("*.safetensors")), reverse=True)[:2]
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.001):
            seen.append(disk_use())

    looking = threading.Thread(target=look)
    looking.start()
    pulled = pull(progress=lambda done, total: time.sleep(0.001))
    done.set()
    looking.join()
    allowed = occupied(pulled.folder) + sum(largest)
    slack = 4096 * 60  # blocks that files do not fill, the journal
    assert len(seen) > 50 and max(largest) < max(seen) <= allowed + slack
    assert sum(file.stat().st_size for file in published.glob("*.safetensors")) > allowed  # or it would show nothing


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_ends_in_the_same_store(published, server, store, seed):
    """Fetching and packing are slowed, so that kills fall into both, and into what is between."""
    chance, kills = random.Random(seed), 0
    target = default_folder(REPO, "q4")
    largest = sum(sorted((file.stat().st_size for file in published.glob("*.safetensors")), reverse=True)[:2])

    def slowly() -> None:
        pull(progress=lambda done, total: time.sleep(0.003))

    while kills < 8:
        for file in published.glob("*.safetensors"):
            server.faults[file.name] = [Fault(), Fault(pace=(1 << 17, 0.004))]  # after the header
        if (ended := in_child(slowly, kill_after=chance.uniform(0.03, 0.4))) == 0:
            break
        assert ended == -signal.SIGALRM
        kills += 1
        assert disk_use() < occupied(store.folder) + largest + 4096 * 60
        assert not target.exists() or PackedStore.open(target)
    server.faults.clear()
    assert kills > 1 and same(pull(), store)
    assert not partial_folder(target).exists() and not (target / "lock").exists()


def test_what_is_packed_is_not_fetched_again(published, server, store):
    """Counted where it arrives: what a server has sent may lie in a socket that nobody reads any more."""
    first, second = Watcher(), Watcher()
    with pytest.raises(KeyboardInterrupt):
        pull(progress=stop_at(0.5), watcher=first)
    plan = propose_packed(resolve(REPO, original=True), "q4")
    weights = sum(file.stat().st_size for file in published.glob("*.safetensors"))
    assert plan.proposal.missing < 0.6 * weights and plan.proposal.present > 0.4 * weights
    told: list[int] = []
    assert same(pull(progress=lambda done, total: told.append(done), watcher=second), store)
    assert told[0] > 0.3 * told[-1]
    texts = sum(file.stat().st_size for file in published.iterdir()) - weights
    in_flight = 1 << 20  # what arrived and was not yet written when it stopped
    assert plan.proposal.missing - texts <= second.arrived <= plan.proposal.missing
    assert weights <= first.arrived + second.arrived <= weights + texts + in_flight


def test_a_packed_shard_that_a_kill_left_behind_is_deleted(server, checkpoint, store):
    """Between the last line about it in the journal and its deletion."""
    publish(server, checkpoint)
    with pytest.raises(KeyboardInterrupt):
        pull(progress=stop_at(0.5))
    folder = partial_folder(default_folder(REPO, "q4"))
    left = [folder / "arriving-model-outside.safetensors", folder / "arriving-model-000.safetensors.incomplete"]
    for path in left:
        path.write_bytes(bytes(1 << 20))
    seen: list[bool] = []
    assert same(pull(progress=lambda done, total: seen.append(any(path.exists() for path in left))), store)
    assert seen and not any(seen)


def test_a_shard_that_was_cut_goes_on_in_its_middle(server, checkpoint, store):
    publish(server, checkpoint)
    name = "model-002.safetensors"
    size = (checkpoint / name).stat().st_size
    server.faults[name] = [Fault(), *[Fault(cut=size // 2 if n == 0 else 0) for n in range(9)]]
    with pytest.raises(NetworkError, match="was lost"):
        pull()
    server.faults.clear()
    assert same(pull(), store)
    assert [sent["range"] for sent in server.requests(name)][-1] == f"bytes={size // 2}-"


def test_a_shard_that_the_cache_holds_is_used_and_stays(server, checkpoint, store):
    publish(server, checkpoint)
    folder = fetch_all(read_manifest(REPO), Watcher(), QUICK)
    (folder / "model-003.safetensors").resolve().unlink()
    before = server.sent_of.copy()
    assert same(pull(), store)
    fetched = server.sent_of - before
    assert set(fetched) == {"model-003.safetensors"}  # header and content
    assert sorted(file.name for file in folder.iterdir() if file.exists()) == sorted(
        file.name for file in checkpoint.iterdir() if file.name != "model-003.safetensors"
    )


def test_the_original_is_kept_on_demand(published, server, store):
    with pytest.raises(KeyboardInterrupt):
        pull(keep=True, progress=stop_at(0.3))
    assert same(pull(keep=True), store)
    assert hub_cache.snapshot(REPO) == hub_cache.repository(REPO) / "snapshots" / hub_server.COMMIT
    assert contents(hub_cache.snapshot(REPO)) == contents(published)
    shutil.rmtree(default_folder(REPO, "q4"))
    before = shard_bytes(server)
    assert same(pull(), store) and shard_bytes(server) == before


def test_to_keep_it_or_not_may_change_on_the_way(published, store):
    for share, keep in ((0.2, False), (0.4, True), (0.6, False)):
        with pytest.raises(KeyboardInterrupt):
            pull(keep=keep, progress=stop_at(share))
    assert same(pull(keep=True), store) and contents(hub_cache.snapshot(REPO)) == contents(published)


# Trouble


def test_a_branch_that_moved_is_not_gone_on_with(server, checkpoint, store):
    publish(server, checkpoint)
    with pytest.raises(KeyboardInterrupt):
        pull(progress=stop_at(0.5))
    first, server.commit = server.commit, "f" * 40
    with pytest.raises(CheckpointError, match=r"was begun from 0123456789ab of .* now at ffffffffffff") as refused:
        pull()
    assert f"{REPO}@{first}" in refused.value.hint and "moecli rm" in refused.value.hint
    server.commit = first
    assert same(pull(f"{REPO}@{first}"), store)
    server.commit = "f" * 40
    with pytest.raises(DiskError, match="from another source or revision"):
        pull()


def test_a_damaged_shard_is_refused_and_packed_when_it_is_whole(server, checkpoint, store):
    publish(server, checkpoint)
    name = "model-004.safetensors"
    server.faults[name] = [Fault(), Fault(wrong=True), Fault(wrong=True)]
    with pytest.raises(CheckpointError, match=f"{name} of {REPO} arrives damaged"):
        pull()
    assert not list(partial_folder(default_folder(REPO, "q4")).glob(f"*{name}*"))
    server.faults[name] = [Fault(), Fault(wrong=True)]  # once is borne
    assert same(pull(), store)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index, files: index.update(extra="no-such.safetensors"), "names 'no-such.safetensors'"),
        (lambda index, files: index.update(extra="../model-000.safetensors"), "outside its folder"),
        (lambda index, files: [index.pop(n) for n in list(index) if index[n] == files[2]], "is missing from"),
        (lambda index, files: index.update(dict.fromkeys(list(index), 7)), "outside its folder"),
    ],
)
def test_an_index_that_lies_of_files_is_explained(server, checkpoint, change, words):
    publish(server, checkpoint)
    index = json.loads((checkpoint / SAFETENSORS.index).read_text())
    change(index["weight_map"], sorted(set(index["weight_map"].values())))
    server.put(f"{REPO}/{SAFETENSORS.index}", json.dumps(index).encode())
    with pytest.raises(MoecliError, match=words):
        pull()
    assert not settings.home().exists()


def test_a_tensor_in_two_shards_is_refused(server, strewn, tmp_path):
    folder = shutil.copytree(strewn, tmp_path / "twice")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    tensors = load_file(second)
    save_file(load_file(first) | {min(tensors): tensors[min(tensors)]}, first)
    publish(server, folder)
    with pytest.raises(CheckpointError, match=f"'{min(tensors)}' is in {first.name} and in {second.name}"):
        pull()


@pytest.mark.parametrize("claim", [b"\xff" * 8, b"\0" * 8, b"PK\3\4pickle"])
def test_a_shard_that_is_none_is_named_before_its_bytes(server, checkpoint, claim):
    publish(server, checkpoint)
    server.put(f"{REPO}/model-001.safetensors", claim + bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"model-001\.safetensors"):
        pull()
    assert shard_bytes(server) < SHARDS * 2 * 65536 and not settings.home().exists()


def test_what_cannot_be_run_is_refused_before_the_headers(server, checkpoint):
    publish(server, checkpoint)
    server.put(f"{REPO}/config.json", json.dumps(catalog.find("jetmoe-8b").config()).encode())
    with pytest.raises(ConfigError, match="cannot be run yet"):
        pull()
    assert not shard_bytes(server) and not settings.home().exists()


def test_a_quantisation_that_only_config_json_knows_hinders_nothing(server, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "leftover")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (folder / "config.json").write_text(json.dumps(config))
    publish(server, folder)
    assert pull().spec.quantization == "awq" and pull().dtype == "q4"


def test_a_refusal_while_headers_are_read_passes_or_is_said(server, checkpoint, store):
    publish(server, checkpoint)
    for file in checkpoint.glob("*.safetensors"):
        server.faults[file.name] = [Fault(status=503), Fault(), Fault(status=429)]
    assert same(pull(), store)
    server.gated = True
    with pytest.raises(NetworkError, match="gated"):
        pull(dtype="q8")


def test_no_room_is_said_before_the_first_shard(server, checkpoint, monkeypatch):
    publish(server, checkpoint)
    plan = propose_packed(resolve(REPO, original=True), "q4")
    sizes_of = {file.name: file.stat().st_size for file in checkpoint.glob("*.safetensors")}
    sizes = sorted(sizes_of.values(), reverse=True)
    output = sum(plan.layout.sizes.values())
    assert output + sum(sizes[:2]) <= plan.proposal.room <= output + sum(sizes[:2]) + (17 << 20)
    kept = propose_packed(resolve(REPO, original=True), "q4", keep=True).proposal
    assert kept.room >= output + sum(sizes) and kept.missing >= sum(sizes)
    usage = shutil.disk_usage("/")._replace(free=plan.proposal.room - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskError, match=r"needs .* more on its disk, which has"):
        pull()
    assert not settings.home().exists()
    assert not any(sent.get("range", "-1").endswith("-") for name in sizes_of for sent in server.requests(name))


def test_two_at_once_are_one_too_many(server, checkpoint, store):
    publish(server, checkpoint)
    refusals: list[object] = []

    def meanwhile(done: int, total: int) -> None:
        if len(refusals) < 2:
            refusals.append(in_child(pull))

    assert same(pull(progress=meanwhile), store)
    assert len(refusals) == 2 and all("another moecli is packing" in str(refusal) for refusal in refusals)


def test_a_plain_pull_and_another_format_meanwhile(server, checkpoint, store):
    """They share nothing that either deletes."""
    publish(server, checkpoint)
    others: list[object] = []

    def meanwhile(done: int, total: int) -> None:
        if not others and done > total / 3:
            others.append(in_child(lambda: fetch_all(read_manifest(REPO), Watcher(), QUICK)))
            others.append(in_child(lambda: pull(dtype="q8")))

    assert same(pull(progress=meanwhile), store) and others == [0, 0]
    assert contents(hub_cache.snapshot(REPO)) == contents(checkpoint)
    assert verify(default_folder(REPO, "q8"), lambda done, total: None) == []

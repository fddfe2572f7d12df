"""Quantised checkpoints, pulled and packed shard by shard: the room they take, and kills at any moment."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moecli.library.stores import default_folder
from moecli.store.packed import PackedStore
from moecli.store.write import partial_folder
from tests.library.test_pull_packed import REPO, disk_use, occupied, publish, pull, same
from tests.support import hub_server, quantised_layouts
from tests.support.encodings import BNB4, bnb4
from tests.support.hub_server import Fault
from tests.support.processes import in_child
from tests.support.stores import deal, packed, random_mixtral

pytestmark = pytest.mark.slow

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
SLACK = 4096 * 60  # blocks that files do not fill, the journal


def nf4(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """bitsandbytes', whose shapes no header says."""
    found: dict[str, torch.Tensor] = {}
    for name, each in tensors.items():
        if each.dim() == 2 and "experts" in name:
            parts, _ = bnb4("nf4", nested=True)(each)
            found |= {name.removesuffix(".weight") + ending: part for ending, part in parts.items()}
        else:
            found[name] = each
    return found


@pytest.fixture(scope="module", params=["fp8", "bitsandbytes"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral of five layers, each of which lies in all six shards, scales apart from their codes."""
    folder = tmp_path_factory.mktemp("source")
    plain = random_mixtral(folder / "five-layers", hidden_size=192, intermediate_size=320)
    tensors = {name: value for file in plain.glob("*.safetensors") for name, value in load_file(file).items()}
    for file in plain.glob("*.safetensors*"):
        file.unlink()
    coded, scheme = (quantised_layouts.fp8(tensors), FP8) if request.param == "fp8" else (nf4(tensors), BNB4)
    save_file({name: each.contiguous() for name, each in coded.items()}, plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))
    return deal(plain, folder / request.param, 6, seed=4)


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    """As `moecli pack` makes it. Not to be changed."""
    return packed(source, tmp_path_factory.mktemp("stores") / "packed", "q8" if source.name == "fp8" else "q4")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, source: Path) -> Iterator[hub_server.Hub]:
    with hub_server.serve_library(monkeypatch) as running:
        publish(running, source)
        yield running


def two_shards(source: Path) -> int:
    """Bytes of the two largest."""
    return sum(sorted((file.stat().st_size for file in source.glob("*.safetensors")), reverse=True)[:2])


@pytest.mark.parametrize("source", ["fp8"], indirect=True)
def test_auto_holds_the_store_and_two_shards_at_most(server: hub_server.Hub, source: Path, store: PackedStore) -> None:
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.001):
            seen.append(disk_use())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        pulled = pull(dtype="auto", progress=lambda done, total: time.sleep(0.001))
    finally:
        done.set()
        looking.join()
    assert same(pulled, store) and len(seen) > 50
    assert max(seen) <= occupied(pulled.folder) + two_shards(source) + SLACK


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_in_the_same_store(
    server: hub_server.Hub, source: Path, store: PackedStore, seed: int
) -> None:
    chance, kills = random.Random(seed), 0
    target = default_folder(REPO, store.dtype)

    def slowly() -> None:
        pull(dtype="auto", progress=lambda done, total: time.sleep(0.003))

    while kills < 8:
        for file in source.glob("*.safetensors"):
            server.faults[file.name] = [Fault(), Fault(pace=(1 << 17, 0.004))]  # after the header
        if (ended := in_child(slowly, kill_after=chance.uniform(0.03, 0.4))) == 0:
            break
        assert ended == -signal.SIGALRM
        kills += 1
        assert disk_use() < occupied(store.folder) + two_shards(source) + SLACK
        assert not target.exists() or PackedStore.open(target)
    server.faults.clear()
    assert kills > 1 and same(pull(dtype="auto"), store) and not partial_folder(target).exists()

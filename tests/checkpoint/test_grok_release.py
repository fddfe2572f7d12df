"""The files of Grok-1's release: sizes as published, names by their order in the tree, and nothing else taken."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.grok_release import read_header
from moecli.errors import CheckpointError
from tests.support.grok_replicas import CONFIG, Grok, pickled, real_release, write_release
from tests.support.hostile_pickles import pickles

FILE = "ckpt-0/tensor00003_000"


def test_pickles_are_as_large_as_the_published_ones() -> None:
    sizes = [size for _, (_, size, _) in real_release()]
    assert sum(sizes) == 318_239_886_140
    assert {1_611_137_347, 1_611_399_491, 24_727, 196_770} <= set(sizes)
    assert len(pickled(np.ones(6144, np.float32))) == 24_727


def test_every_leaf_by_its_path(tmp_path: Path) -> None:
    """Layers as their names sort: 10 before 2."""
    grok = Grok()
    found = Checkpoint.open(write_release(grok, tmp_path)).tensors
    assert found.keys() == grok.leaves.keys()
    for path, leaf in grok.leaves.items():
        stored, shape = found[path], leaf[0].shape if isinstance(leaf, tuple) else leaf.shape
        assert stored.shape == (shape[::-1] if stored.transposed else shape)
        assert stored.transposed == (len(shape) == 2 and "embed" not in path)
        content = stored.path.read_bytes()
        if isinstance(leaf, tuple):
            codes, scales = stored.parts
            assert (codes.offset, codes.size) == (stored.offset, stored.size)
            assert content[stored.offset :][: stored.size] == leaf[0].tobytes()
            expected = leaf[1].view(torch.int16).numpy().tobytes()
            assert content[scales.offset :][: scales.size] == expected
        else:
            assert stored.encoding is None and content[stored.offset :][: stored.size] == leaf.tobytes()


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    folder = write_release(Grok(), tmp_path)
    (folder / "ckpt-0" / "tensor00133_000").unlink()
    with pytest.raises(CheckpointError, match="1 of 134 shards are missing, ckpt-0/tensor00133_000 first"):
        Checkpoint.open(folder)
    (folder / "ckpt-0" / "tensor00007_000").unlink()
    with pytest.raises(CheckpointError, match="2 of 134 shards are missing, ckpt-0/tensor00007_000 first"):
        Checkpoint.open(folder)


class Custom(np.ndarray):
    """An array with a class of its own."""


CODES = np.zeros((2, 4, 6), np.int8)
OTHERS: dict[str, Callable[[], bytes]] = {
    "an object array": lambda: pickle.dumps(np.array([None, 1]), 4),
    "a structured array": lambda: pickle.dumps(np.zeros(3, "i4,f4"), 4),
    "big-endian": lambda: pickle.dumps(np.zeros(3, ">f4"), 4),
    "Fortran's order": lambda: pickle.dumps(np.asfortranarray(np.ones((3, 4), np.float32)), 4),
    "complex numbers": lambda: pickle.dumps(np.zeros(3, np.complex64), 4),
    "dates": lambda: pickle.dumps(np.zeros(3, "M8[s]"), 4),
    "a class of arrays": lambda: pickle.dumps(np.zeros(3, np.float32).view(Custom), 4),
    "a number": lambda: pickle.dumps(np.float32(1), 4),
    "a list of arrays": lambda: pickle.dumps([np.zeros(3, np.float32)], 4),
    "a dict of arrays": lambda: pickle.dumps({"weight": CODES, "scales": CODES}, 4),
    "four axes": lambda: pickle.dumps(np.zeros((1, 1, 1, 1), np.float32), 4),
    "scales of other outputs": lambda: pickled((CODES, torch.ones(2, 1, 5))),
    "scales of other experts": lambda: pickled((CODES, torch.ones(1, 1, 6))),
    "groups that do not divide": lambda: pickled((CODES, torch.ones(2, 3, 6))),
    "no groups": lambda: pickled((CODES, torch.ones(2, 0, 6))),
    "scales of another rank": lambda: pickled((CODES, torch.ones(1, 6))),
    "codes that are floats": lambda: pickled((CODES.astype(np.float32), torch.ones(2, 1, 6))),
    "cut short": lambda: pickled((CODES, torch.ones(2, 1, 6)))[:-30],
    "cut inside its numbers": lambda: pickled(np.zeros(50_000, np.float32))[:150_000],
    "fewer numbers than its shape": lambda: pickled(np.zeros(7, np.float32)).replace(b"K\x07\x85", b"K\x08\x85"),
    "by the newest protocol": lambda: pickle.dumps(np.zeros(3, np.float32), 5),
    "scaled twice": lambda: pickled((CODES, torch.ones(2, 1, 6))).replace(b"bub.", b"bub}b."),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_leaf_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "tensor00003_000"
    path.write_bytes(OTHERS[case]())
    with pytest.raises(CheckpointError) as caught:
        read_header(path, FILE)
    assert caught.value.hint


def test_what_is_hostile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensor00003_000"
    for name, content in pickles(tmp_path / "ran"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            print(name, read_header(path, FILE))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_release_that_is_another_model(tmp_path: Path) -> None:
    """A table of another width is found where shapes are checked."""
    from moecli.store.source import open_source

    config: dict[str, Any] = CONFIG | {"num_hidden_layers": 2}
    folder = write_release(Grok(config=config), tmp_path)
    open_source(folder)
    (folder / "ckpt-0" / "tensor00000_000").write_bytes(pickled(np.zeros((97, 32), np.float32)))
    with pytest.raises(CheckpointError, match=r"must be \[97, 64\] but the file has \[97, 32\]"):
        open_source(folder)

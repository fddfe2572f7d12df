"""Grok-1 from every public layout of its weights: made from the same random numbers, they say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import prompt
from tests.support.grok_replicas import LAYOUTS, Grok, logits
from tests.support.running import greedy, load, score
from tests.support.stores import packed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grok() -> Grok:
    return Grok()


@pytest.fixture(scope="module")
def folders(grok: Grok, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("grok")
    return {name: write(grok, root / name) for name, write in LAYOUTS.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_the_description(layout: str, grok: Grok, folders: dict[str, Path]) -> None:
    ids = prompt(40)
    expected = logits(grok, ids)
    decoder = load(folders[layout], "fp32")
    assert (score(decoder, ids) - expected).abs().max() <= 2e-5 * expected.abs().max()
    ours = greedy(decoder, ids[:8], 24)
    assert ours == logits(grok, ids[:8] + ours[:-1])[7:].argmax(-1).tolist()


def test_as_stored_all_say_the_same(folders: dict[str, Path]) -> None:
    """In bf16, where one rounding of another kind would show."""
    scores = {name: score(load(folder, "bf16"), prompt(40)) for name, folder in folders.items()}
    for name in LAYOUTS:
        assert torch.equal(scores[name], scores["hpcai-tech"]), name


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32])
def test_scales_in_either_precision(scales: torch.dtype, tmp_path: Path) -> None:
    grok = Grok(seed=1, scales=scales)
    assert torch.equal(
        score(load(LAYOUTS["xai-org"](grok, tmp_path / "one")), prompt(20)),
        score(load(LAYOUTS["sglang"](grok, tmp_path / "other")), prompt(20)),
    )


@pytest.mark.parametrize("dtype", ["bf16", "q4"])
def test_packed_they_are_the_same_files(dtype: str, folders: dict[str, Path], tmp_path: Path) -> None:
    stores = {name: packed(folder, tmp_path / name, dtype).folder for name, folder in folders.items()}
    for path in stores["hpcai-tech"].glob("experts-*.safetensors"):
        for name, store in stores.items():
            assert (store / path.name).read_bytes() == path.read_bytes(), (name, path.name)

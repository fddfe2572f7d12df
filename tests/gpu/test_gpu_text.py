"""What the card computes is what the CPU computes, wherever the experts are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moecli
from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.store import expert_record
from moecli.text.tokenizer import Tokenizer
from tests.engine import test_grok as grok
from tests.support.checkpoints import MIXTURES, make, prompt, write
from tests.support.gpu_places import decoders
from tests.support.running import answer, greedy, load, score, session
from tests.support.stores import packed

pytestmark = pytest.mark.gpu

TINY = Path(moecli.__file__).parent / "tiny"
BITSANDBYTES = ("nf4", "int8")
# The largest relative error of logits. On the CPU q4 and q8 round what they multiply to 8 bits, on the card int8 does.
ERRORS = {"fp32": 1e-4, "bf16": 1e-2, "q8": 2e-2, "q4": 2e-2, "q3": 2e-2, "nf4": 2e-2, "int8": 4e-2}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert bool(found.isfinite().all())
    return float((found - expected).norm() / expected.norm())


def ids_of(text: str) -> list[int]:
    return Tokenizer.load(TINY).encode(text)


def text_of(decoder: Decoder, ids: list[int]) -> list[int]:
    """100 tokens, then a second turn on the same cache."""
    running = session(decoder)
    first = answer(running, ids, 100)
    return first + answer(running, [*ids, *first, *ids_of(" The ship")], 20)


def test_tiny_writes_the_same_text(card: torch.device) -> None:
    """In float32, where rounding is far smaller than what lies between two tokens."""
    ids = ids_of("The sea")
    expected = text_of(load(TINY, "fp32"), ids)
    for place, decoder in decoders(open_model(TINY), "fp32", card):
        assert text_of(decoder, ids) == expected, place
        assert greedy(decoder, ids, 20) == expected[:20], f"{place}, again"


@pytest.mark.parametrize("dtype", ["bf16", "q8", "q4", "q3", "nf4", "int8"])
def test_tiny_says_nearly_the_same(dtype: str, card: torch.device, tmp_path: Path) -> None:
    """Logits for a text in one chunk, and its first tokens one by one. What the CPU chooses is never far behind."""
    if dtype in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    folder = packed(TINY, tmp_path / "store", dtype).folder
    start = ids_of("The sea")
    cpu = load(folder, dtype)
    text = greedy(cpu, start, 20 if dtype == "int8" else 100)  # the CPU takes its time for int8
    ids = start + text
    expected = score(cpu, ids)
    for place, decoder in decoders(open_model(folder), dtype, card, ("copied", "stay")):
        found = score(decoder, ids).cpu()
        assert distance(found, expected) < ERRORS[dtype], place
        assert distance(score(decoder, ids[:24], 1).cpu(), expected[:24]) < ERRORS[dtype], place
        likely = found[len(start) - 1 : -1]
        behind = likely.amax(1) - likely.gather(1, torch.tensor(text)[:, None])[:, 0]
        assert float(behind.max()) <= 0.5, place


@pytest.mark.parametrize("dtype", ["bf16", "q4"])
def test_what_is_converted_while_it_is_loaded(dtype: str, card: torch.device) -> None:
    cpu = load(TINY, dtype)
    ids = ids_of("The sea") + greedy(cpu, ids_of("The sea"), 20)
    expected = score(cpu, ids)
    for place, decoder in decoders(open_model(TINY), dtype, card, ("both",)):
        assert distance(score(decoder, ids).cpu(), expected) < ERRORS[dtype], place


@pytest.mark.parametrize("family", MIXTURES)
def test_every_family_computes_the_same(family: str, card: torch.device, tmp_path: Path) -> None:
    store = packed(write(make(family), tmp_path / "model"), tmp_path / "store", "fp32")
    same_as_the_cpu(store.folder, card)


def test_grok_computes_the_same(card: torch.device, tmp_path: Path) -> None:
    folder = grok.write(tmp_path, grok.CONFIG, grok.HPCAI)
    same_as_the_cpu(folder, card)


def same_as_the_cpu(folder: Path, card: torch.device, *rates: str) -> None:
    """A prompt in chunks, tokens one by one, and a text; `rates` as `gpu_places` names them."""
    ids = prompt(60)
    cpu = load(folder, "fp32")
    expected, text = score(cpu, ids), greedy(cpu, ids, 24)
    for place, decoder in decoders(open_model(folder), "fp32", card, rates or ("both",)):
        assert distance(score(decoder, ids, 32).cpu(), expected) < 1e-4, place
        assert distance(score(decoder, ids[:8], 1).cpu(), expected[:8]) < 1e-4, place
        assert greedy(decoder, ids, 24, 32) == text, place


def test_large_experts_pass_in_pieces(card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(make("mixtral", hidden_size=128, intermediate_size=448), tmp_path / "model")
    monkeypatch.setattr(expert_record, "PIECE", 2**15)
    monkeypatch.setattr("moecli.formats.blocks._WEIGHTS", 2**13)
    store = packed(folder, tmp_path / "store", "fp32")
    assert len(store.record(0).pieces()) > 1
    same_as_the_cpu(store.folder, card, "copied", "stay")

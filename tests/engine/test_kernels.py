"""MOECLI_KERNEL: whoever multiplies, the model says the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import moecli
from moecli.errors import UsageError
from moecli.kernels import choice, library
from moecli.text.tokenizer import Tokenizer
from tests.support.checkpoints import make, prompt, write
from tests.support.running import greedy, load, score
from tests.support.stores import decoder, packed

pytestmark = pytest.mark.slow

TINY = Path(moecli.__file__).parent / "tiny"
HELD_OUT = Path(__file__).parents[2] / "training" / "heldout" / "english.txt"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Force a kernel from here on."""

    def force(kernel: str) -> None:
        monkeypatch.setenv("MOECLI_KERNEL", kernel)
        choice.chosen.cache_clear()

    yield force
    monkeypatch.undo()
    choice.chosen.cache_clear()


@pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
@pytest.mark.parametrize("dtype", ["q4", "q8"])
def test_native_and_torch_say_the_same(dtype: str, use: Callable[[str], None]) -> None:
    """The same 200 greedy tokens, and a perplexity within half a per cent."""
    tokenizer = Tokenizer.load(TINY)
    start, text = tokenizer.encode("The sea"), tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"))[:512]
    said, loss = {}, {}
    for kernel in ("native", "torch"):
        use(kernel)
        model = load(TINY, dtype, 512)
        said[kernel] = greedy(model, start, 200)
        loss[kernel] = float(F.cross_entropy(score(model, text, 512)[:-1], torch.tensor(text[1:])))
    assert said["native"] == said["torch"]
    assert math.exp(abs(loss["native"] - loss["torch"])) <= 1.005


@pytest.mark.parametrize("kernel", ["native", "bnb", "torch"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "q4", "q3", "q8", "nf4", "int8"])
def test_with_every_kernel_placement_changes_no_bit(
    dtype: str, kernel: str, use: Callable[[str], None], tmp_path: Path
) -> None:
    use(kernel)
    store = packed(
        write(make("mixtral", hidden_size=64, intermediate_size=64), tmp_path / "model"), tmp_path / "s", dtype
    )
    expected = score(decoder(store, None), prompt(30))
    for slots in (0, 3):
        assert torch.equal(score(decoder(store, slots), prompt(30)), expected)


def test_an_unknown_kernel_is_named(use: Callable[[str], None]) -> None:
    use("cuda")
    with pytest.raises(UsageError, match="MOECLI_KERNEL is 'cuda'"):
        choice.chosen("q4", "cpu")

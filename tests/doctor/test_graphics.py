"""What is said of GPUs: whose kernels run there, how fast they are, and those that moecli leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moecli.doctor import graphics
from moecli.doctor.graphics import Gpu, Graphics
from moecli.output.doctor import _rows
from tests.doctor.test_verdict import GOOD, changed

GIB = 2**30


def rows(gpu: Gpu) -> list[str]:
    found = list(_rows(replace(GOOD, graphics=Graphics((gpu,), None))))
    first = next(number for number, (label, _) in enumerate(found) if label == "GPU")
    last = next(number for number, (label, _) in enumerate(found) if label == "disk")
    return [text for _, text in found[first:last]]


def test_a_card_with_kernels_that_was_measured() -> None:
    card = Gpu("A card", 12 * GIB, 11 * GIB, "8.6", None, True, 330 * GIB, 24 * GIB, 25 * GIB)
    assert rows(card) == [
        "A card, 12 GiB, 11 GiB free, compute capability 8.6",
        "q8, q4, q3: by moecli's own kernels",
        "copies 330 GiB/s of its own memory; its link 24 GiB/s to it, 25 GiB/s back",
    ]


def test_a_card_without_them() -> None:
    card = Gpu("A card", 12 * GIB, 11 * GIB, "9.4", None)
    assert rows(card)[1:] == ["q8, q4, q3: left to the processor, no kernels of moecli run there"]
    assert rows(Gpu("A card", 12 * GIB, None, "9.4", "it is lost")) == ["A card, 12 GiB, compute capability 9.4"]
    assert changed("graphics", gpus=(card,)) == []


@pytest.mark.parametrize(("kind", "named"), [("mps", "Apple's (MPS)"), ("xpu", "Intel's (XPU)")])
def test_what_moecli_leaves_alone_is_named(kind: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = graphics.look(None)
    assert without == graphics.look(None, measure=True) and named not in str(without.absence)
    module = torch.backends.mps if kind == "mps" else torch.xpu
    monkeypatch.setattr(module, "is_available", lambda: True)
    assert graphics.look(None).absence == f"moecli uses CUDA and ROCm, and leaves {named} alone"

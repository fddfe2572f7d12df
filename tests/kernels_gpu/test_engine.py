"""A prompt on a GPU goes through Triton's attention, and says what torch's blocks of scores say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.kernels import choice, prompt_attention
from moecli.kernels.gpu import attention
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load, score

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's tensors are the CPU's")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of the kernel, whether it was over latents."""
    calls: list[bool] = []
    choose = attention.choose_tiling

    def watched(*arguments: Any) -> attention.Tiling:
        calls.append(arguments[4].shared)
        return choose(*arguments)

    monkeypatch.setattr(attention, "choose_tiling", watched)
    return calls


@pytest.mark.parametrize(
    ("family", "changes", "chunk"),
    [("mixtral", {"sliding_window": 8}, 12), ("olmoe", {}, 256), ("deepseek_v2", {}, 12)],
)
def test_a_prompt_says_the_same(
    family: str,
    changes: dict[str, Any],
    chunk: int,
    shared: list[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = load(write(make(family, num_hidden_layers=1, **changes), tmp_path))
    ids = prompt(24)
    monkeypatch.setenv("MOECLI_KERNEL", "torch")
    wanted = score(decoder, ids)
    assert not shared
    monkeypatch.setenv("MOECLI_KERNEL", "triton")
    assert torch.allclose(score(decoder, ids, chunk), wanted, atol=1e-4)
    assert len(shared) == -(-len(ids) // chunk)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cohere2_moe", "gemma4", "llama4", "mimo_v2_flash", "phimoe", "step3p7"])
def test_what_the_kernels_lack_is_torchs(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt and single tokens of models whose attention, norms or routing no kernel of a card has."""
    folder, ids = write(make(family), tmp_path), prompt(20)
    monkeypatch.setenv("MOECLI_KERNEL", "torch")
    wanted = score(load(folder), ids)
    monkeypatch.setenv("MOECLI_KERNEL", "triton")
    served = load(folder)
    assert torch.allclose(score(served, ids, 10), wanted, atol=1e-4)
    assert torch.allclose(score(served, ids[:4], 1), wanted[:4], atol=1e-4)


@pytest.mark.parametrize("expand", [False, True])
def test_latents_are_met_either_way(
    expand: bool, shared: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load(write(make("deepseek_v3", num_hidden_layers=1), tmp_path))
    monkeypatch.setenv("MOECLI_KERNEL", "torch")
    wanted = score(decoder, prompt(12))
    monkeypatch.setenv("MOECLI_KERNEL", "triton")
    monkeypatch.setattr(prompt_attention, "expansion_pays", lambda *_: expand)
    assert torch.allclose(score(decoder, prompt(12)), wanted, atol=1e-4)
    assert shared == [not expand]


def test_interpreted_kernels_serve_who_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for asked, serves in ((None, False), ("native", False), ("torch", False), ("triton", True)):
        if asked is not None:
            monkeypatch.setenv("MOECLI_KERNEL", asked)
        assert choice.on_gpu(cpu) is serves

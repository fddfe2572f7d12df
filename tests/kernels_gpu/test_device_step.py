"""A device's decode step, interpreted: what the CPU's own kernels say, wherever the experts are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.engine.decoder import Decoder
from moecli.engine.load import open_model
from moecli.experts.gpu_offloaded import DeviceStatistics
from moecli.kernels import choice, library
from tests.engine.test_decode_step import Seen
from tests.support.checkpoints import make, prompt, write
from tests.support.gpu_places import decoders
from tests.support.running import load, score
from tests.support.stores import packed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's tensors are the CPU's"),
    pytest.mark.skipif(not library.isas(), reason="the native kernels are not built"),
]

CPU = torch.device("cpu")
IDS = prompt(2)
ERRORS = {"fp32": 1e-4, "q4": 3e-2}  # relative; q4's states are rounded to bf16 at other places
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "q4": ("mixtral", "q4", {}),
    "fp32": ("mixtral", "fp32", {}),
    "latents": ("deepseek_v2", "q4", {"num_hidden_layers": 2, "intermediate_size": 48, "n_routed_experts": 4}),
    "shared": ("qwen2_moe", "fp32", {"shared_expert_intermediate_size": 16, "num_experts": 4}),
}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Force a kernel from here on."""

    def force(kernel: str) -> None:
        monkeypatch.setenv("MOECLI_KERNEL", kernel)
        choice.chosen.cache_clear()

    yield force
    monkeypatch.undo()
    choice.chosen.cache_clear()


def store_of(name: str, folder: Path) -> tuple[Path, str]:
    family, dtype, changes = MODELS[name]
    made = write(make(family, **{"num_hidden_layers": 1, **changes}), folder / "model")
    return packed(made, folder / "store", dtype).folder, dtype


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def seen_by(decoder: Decoder, ids: list[int]) -> tuple[torch.Tensor, Seen]:
    """Logits of tokens one by one, and whom they took."""
    cache, seen = decoder.new_cache(8, 8), Seen()
    rows = [decoder.logits(decoder.forward(torch.tensor([each]), cache, seen)) for each in ids]
    return torch.cat(rows), seen


@pytest.mark.parametrize("name", MODELS)
def test_it_says_what_the_cpu_says(name: str, use: Callable[[str], None], tmp_path: Path) -> None:
    """The same experts are chosen, too, and it tells how many it found on the device."""
    use("native")
    folder, dtype = store_of(name, tmp_path)
    wanted, routed = seen_by(load(folder, dtype), IDS)
    use("triton")
    _, decoder = next(decoders(open_model(folder), dtype, CPU))
    assert decoder._device_step is not None
    found, seen = seen_by(decoder, IDS)
    assert distance(found, wanted) < ERRORS[dtype]
    assert len(seen.routings) == len(routed.routings) > 0
    for mine, theirs in zip(seen.routings, routed.routings, strict=True):
        assert torch.equal(mine.topk_ids, theirs.topk_ids)
        assert torch.allclose(mine.topk_weights, theirs.topk_weights, atol=ERRORS[dtype])
    statistics = decoder.experts.statistics
    assert isinstance(statistics, DeviceStatistics)
    assert statistics.hits == statistics.device_hits == sum(each.topk_ids.numel() for each in routed.routings)


@pytest.mark.parametrize("name", ["q4", "fp32"])
def test_wherever_the_experts_are(name: str, use: Callable[[str], None], tmp_path: Path) -> None:
    """Half in RAM and computed there, or copied; a third on disk. To the bit where the same kernels compute all."""
    use("triton")
    folder, dtype = store_of(name, tmp_path)
    wanted = None
    for place, decoder in decoders(open_model(folder), dtype, CPU, ("stay", "copied")):
        assert decoder._device_step is not None
        found = score(decoder, IDS, 1)
        wanted = found if wanted is None else wanted
        assert torch.equal(found, wanted) if dtype == "q4" else distance(found, wanted) < 1e-6, place


@pytest.mark.parametrize("name", ["q4", "latents"])
def test_tokens_together_are_tokens_one_by_one(name: str, use: Callable[[str], None], tmp_path: Path) -> None:
    """Of one text, and one each of two texts that have not the same length."""
    use("triton")
    folder, dtype = store_of(name, tmp_path)
    places = dict(decoders(open_model(folder), dtype, CPU, ("stay",)))
    decoder = places["half, stay"]
    assert decoder._device_step is not None
    alone = score(decoder, IDS, 1)
    assert distance(score(decoder, IDS), alone) < 1e-2
    caches = [decoder.new_cache(8, 8) for _ in range(2)]
    decoder.forward(torch.tensor(IDS[:1]), caches[0])
    states = decoder.forward_texts(torch.tensor([IDS[1], IDS[0]]), caches)
    together = decoder.logits(states)
    assert distance(together, alone.flip(0)) < 1e-2
    assert [cache.length for cache in caches] == [2, 1]

"""Several texts at once: no bit of any tells, and each expert is asked for once for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.engine.cache import Cache
from moecli.engine.decoder import Decoder
from moecli.kernels.library import library
from tests.support import stores
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load

pytestmark = pytest.mark.skipif(library() is None, reason="torch's own products depend on their height")
WIDE = {"moe_intermediate_size": 32, "intermediate_size": 64}  # stacked gates and ups that can be told apart


def caches_for(decoder: Decoder, texts: list[list[int]], chunk: int = 32) -> list[Cache]:
    return [decoder.new_cache(len(text) + 8, chunk) for text in texts]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "q8", "q4", "nf4"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {"sliding_window": 24}), ("deepseek_v3", WIDE), ("deepseek_v32", WIDE), ("qwen2_moe", {}),
        ("granitemoe", {}), ("dbrx", {}),
    ],
)  # fmt: skip
def test_prompts_that_are_read_together_are_as_each_alone(
    family: str, changes: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    """Latents are expanded for the longer of them; what the caches hold is the same, too."""
    decoder = load(write(make(family, **changes), tmp_path), dtype)
    texts = [prompt(length, seed=length) for length in (9, 150, 40, 63, 10)]
    together = caches_for(decoder, texts)
    states = decoder.read_texts([torch.tensor(text) for text in texts], together)
    assert len(states) == len(texts)
    for text, state, cache, single in zip(texts, states, together, caches_for(decoder, texts), strict=True):
        assert torch.equal(state, decoder.forward(torch.tensor(text), single, last_only=True)[0])
        assert torch.equal(decoder.forward(torch.tensor([5]), cache), decoder.forward(torch.tensor([5]), single))


@pytest.mark.parametrize("slots", [3, None])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_a_step_of_many_texts_asks_for_each_expert_once(family: str, slots: int | None, tmp_path: Path) -> None:
    changes = WIDE if family == "deepseek_v3" else {}
    store = stores.packed(write(make(family, **changes), tmp_path / "model"), tmp_path / "q8", "q8")
    decoder = stores.decoder(store, slots)
    assert decoder.decode_step is not None and decoder.decode_step.max_tokens == 8
    texts = [prompt(10 + seed, seed=seed) for seed in range(20)]
    ids = torch.tensor(prompt(20, seed=99))
    together = caches_for(decoder, texts)
    decoder.read_texts([torch.tensor(text) for text in texts], together)
    statistics = decoder.experts.statistics
    before = statistics.hits + statistics.misses
    found = decoder.next_logits(ids, together)
    asked = statistics.hits + statistics.misses - before
    experts = sum(mixture.router.experts for _, mixture in decoder.spec.mixtures)
    assert asked <= experts * (1 if slots else 3)  # resident ones cost no reading: three steps of eight, eight, four
    for place, (text, single) in enumerate(zip(texts, caches_for(decoder, texts), strict=True)):
        decoder.forward(torch.tensor(text), single)
        assert torch.equal(found[place], decoder.next_logits(ids[place : place + 1], [single])[0])

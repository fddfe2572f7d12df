"""Families that transformers lacks, against the plain references: logits, greedy tokens and both tensor layouts."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.engine.router import Routing
from moecli.model.families import families
from tests.support.checkpoints import prompt
from tests.support.plain_checkpoints import FAMILIES, make, write
from tests.support.running import greedy, load, score
from tests.support.stores import decoder as placed
from tests.support.stores import packed

pytestmark = pytest.mark.slow

CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((family, "plain", {}) for family in FAMILIES),
    ("deepseek", "normalised, tied, multi-head",
     {"norm_topk_prob": True, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("deepseek", "one expert, weighed as it is", {"norm_topk_prob": True, "num_experts_per_tok": 1}),
    ("deepseek", "biases, all sparse, none shared",
     {"attention_bias": True, "first_k_dense_replace": 0, "n_shared_experts": 0}),
    ("arctic", "two experts, tied, multi-head",
     {"num_experts_per_tok": 2, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("bailing_moe", "one group, all turns, two shared",
     {"n_group": 1, "topk_group": 1, "partial_rotary_factor": 1.0, "num_shared_experts": 2}),
    ("bailing_moe", "biases, no norms, tied",
     {"use_qkv_bias": True, "use_bias": True, "use_qk_norm": False, "tie_word_embeddings": True}),
    ("bailing_moe", "dense first, one kv head", {"first_k_dense_replace": 2, "num_key_value_heads": 1}),
]  # fmt: skip


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, all experts of a layer in two stacks."""
    found = {name: value for name, value in tensors.items() if ".experts." not in name}
    for router in (name for name in tensors if name.endswith("mlp.gate.weight")):
        prefix = router.removesuffix("gate.weight") + "experts."
        gate, up, down = (
            torch.stack([tensors[f"{prefix}{expert}.{part}_proj.weight"] for expert in range(len(tensors[router]))])
            for part in ("gate", "up", "down")
        )
        found |= {prefix + "gate_up_proj": torch.cat((gate, up), 1), prefix + "down_proj": down}
    return found


@pytest.mark.parametrize(
    ("family", "changes"), [pytest.param(family, changes, id=f"{family}-{what}") for family, what, changes in CASES]
)
def test_parity(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config, tensors = make(family, changes)
    published = write(tmp_path / "published", config, tensors)
    decoders = [load(published)]
    if any(
        each.experts and each.experts.down.name.endswith("experts.down_proj") for each in families()[family].layouts
    ):
        decoders.append(load(write(tmp_path / "fused", config, fused(tensors))))
    reference = FAMILIES[family][0](published)
    for ids in (prompt(5), prompt(200)):
        for decoder in decoders:
            ours = greedy(decoder, ids, 24)
            text = ids + ours[:-1]
            expected = reference.logits(text)
            assert (score(decoder, text) - expected).abs().max() <= 1e-4
            assert ours == expected[len(ids) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_chunks_nor_the_native_step_change_the_logits(family: str, tmp_path: Path) -> None:
    config, tensors = make(family, {})
    decoder = load(write(tmp_path / "model", config, tensors))
    ids = prompt(60)
    whole = score(decoder, ids)
    for chunk in (1, 7):
        assert (score(decoder, ids, chunk) - whole).abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_placement_changes_no_bit(family: str, tmp_path: Path) -> None:
    config, tensors = make(family, {})
    store = packed(write(tmp_path / "model", config, tensors), tmp_path / "store", "q8")
    ids = prompt(40)
    everything, few = (placed(store, slots) for slots in (None, 2))
    for chunk in (256, 1):
        assert torch.equal(score(few, ids, chunk), score(everything, ids, chunk))
    texts = [torch.tensor(prompt(length)) for length in (23, 40)]
    together, alone = Choices(), Choices()
    few.layerwise_prefill(texts, 16, together)
    for text in texts:
        everything.forward(text, everything.new_cache(len(text), 16), alone)
    for layer, choices in together.of.items():
        assert torch.equal(torch.cat(choices), torch.cat(alone.of[layer])), layer


class Choices:
    """An observer that keeps which experts were chosen, by layer."""

    generated = False

    def __init__(self) -> None:
        self.of: dict[int, list[torch.Tensor]] = defaultdict(list)

    def tokens(self, ids: torch.Tensor) -> None:
        pass

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        self.of[layer].append(routing.topk_ids.clone())

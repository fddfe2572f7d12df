"""A decode step: the native calls do what the operators do, for every family and placement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moecli.engine.decoder import Decoder
from moecli.engine.router import Routing
from moecli.engine.weights import checkpoint_weights
from moecli.experts.resident import packed_experts
from moecli.kernels import library, prompt_attention
from moecli.kernels.blocking import MAX_TOKENS
from moecli.store.source import open_source
from tests.support import stores
from tests.support.checkpoints import DECODERS, make, prompt, write

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")]

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in DECODERS),
    ("mixtral", {"sliding_window": 16}),
    ("mixtral", {"head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 1}),
    ("qwen3_moe", {"norm_topk_prob": True, "attention_bias": True}),
    ("qwen2_moe", {"shared_expert_intermediate_size": 32}),
    ("deepseek_v3", {"moe_intermediate_size": 32, "intermediate_size": 64}),
    ("ernie4_5_moe", {"moe_intermediate_size": 32, "intermediate_size": 64, "moe_norm_min": 0.7}),
    ("glm4_moe", {"moe_intermediate_size": 32, "intermediate_size": 64, "use_qk_norm": True}),
    ("hunyuan_v1_moe", {"intermediate_size": 32}),
]


class Seen:
    """A trace that keeps what it is shown."""

    generated = False

    def __init__(self) -> None:
        self.routings: list[Routing] = []

    def tokens(self, ids: torch.Tensor) -> None:
        pass

    def foresee(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Not of interest."""

    def record(self, layer: int, routing: Routing) -> None:
        self.routings.append(routing)


def one_by_one(model: Decoder, ids: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Logits [T, V] after a prompt of half the ids, then of each other."""
    cache = model.new_cache(len(ids), 32)
    half = len(ids) // 2
    rows = [model.forward(ids[:half], cache)[-1:]]
    rows += [model.forward(ids[index : index + 1], cache, seen) for index in range(half, len(ids))]
    return model.logits(torch.cat(rows))


def decoder(folder: Path, native: bool, dtype: str = "q8", compute: str = "fp32") -> Decoder:
    """Weights in `dtype`, all else in `compute`; unless `native` by torch's operators between the native products."""
    weights = open_source(folder)
    experts = packed_experts(weights, dtype, 0, lambda done, total: None)
    return Decoder(weights.spec, checkpoint_weights(weights, dtype, compute), experts, 256, native)


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=lambda value: "-".join(value) if value else "plain")
def test_it_is_as_by_operators(
    family: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routing and logits, up to a rounding of the activations here and there."""
    folder = write(make(family, **changes), tmp_path / "model")
    ids = torch.tensor(prompt(80))
    native, plain = Seen(), Seen()
    model = decoder(folder, native=True)
    assert model.decode_step is not None
    logits = one_by_one(model, ids, native)
    monkeypatch.setattr(prompt_attention, "serves", lambda queries: False)
    expected = one_by_one(decoder(folder, native=False), ids, plain)
    assert (logits - expected).norm() / expected.norm() < 0.01
    for a, b in zip(native.routings, plain.routings, strict=True):
        assert (a.logits - b.logits).norm() / b.logits.norm() < 0.01
    alike = [
        (a, b) for a, b in zip(native.routings, plain.routings, strict=True) if torch.equal(a.topk_ids, b.topk_ids)
    ]
    assert len(alike) >= 0.8 * len(plain.routings)  # the others are torn
    assert all(torch.allclose(a.topk_weights, b.topk_weights, atol=0.02) for a, b in alike)


@pytest.mark.parametrize(
    ("dtype", "compute", "error"),
    [
        ("fp32", "fp32", 1e-5), ("int8", "fp32", 1e-5), ("nf4", "fp32", 1e-5),
        ("bf16", "bf16", 0.03), ("fp16", "fp16", 0.004), ("int8", "fp16", 0.004), ("q4", "fp16", 0.03),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["qwen2_moe", "llama"])
def test_in_every_format(family: str, dtype: str, compute: str, error: float, tmp_path: Path) -> None:
    """All of it in one call, shared expert and biases too; nothing but activations in 16 bits is rounded otherwise."""
    folder = write(make(family, **({"shared_expert_intermediate_size": 48} if "moe" in family else {})), tmp_path)
    model, ids = decoder(folder, True, dtype, compute), torch.tensor(prompt(40))
    assert model.decode_step is not None
    found = one_by_one(model, ids, Seen())
    expected = one_by_one(decoder(folder, False, dtype, compute), ids, Seen())
    assert (found - expected).norm() / expected.norm() < error


def together(model: Decoder, ids: torch.Tensor, size: int, seen: Seen | None = None) -> torch.Tensor:
    """States [T, D] of all ids but the first 20, `size` of them at a time."""
    cache = model.new_cache(len(ids), 32)
    model.forward(ids[:20], cache)
    return torch.cat([model.forward(part, cache, seen) for part in ids[20:].split(size)])


# Stacked gates and ups of packed formats can be told apart at every 16th row.
_TWO_WIDTHS = {"moe_intermediate_size": 32, "intermediate_size": 64}
WHOLE_PANELS = {
    "llama": {"intermediate_size": 64},
    "mistral": {"intermediate_size": 64},
    "qwen2_moe": {"shared_expert_intermediate_size": 32},
    "hunyuan_v1_moe": {"intermediate_size": 32},
    "deepseek_v2": _TWO_WIDTHS,
    "deepseek_v3": _TWO_WIDTHS,
    "deepseek_v32": _TWO_WIDTHS,
    "dots1": _TWO_WIDTHS,
    "ernie4_5_moe": _TWO_WIDTHS,
    "glm4_moe": _TWO_WIDTHS,
    "glm4_moe_lite": _TWO_WIDTHS,
    "glm_moe_dsa": _TWO_WIDTHS,
    "afmoe": _TWO_WIDTHS,
    "cohere2_moe": {"intermediate_size": 32, "prefix_dense_intermediate_size": 64, "num_shared_experts": 1},
    "exaone_moe": _TWO_WIDTHS,
    "gemma4": _TWO_WIDTHS,
    "laguna": _TWO_WIDTHS | {"shared_expert_intermediate_size": 32},
    "llama4": {"intermediate_size": 32, "intermediate_size_mlp": 64},
    "mimo_v2_flash": _TWO_WIDTHS,
    "mistral4": _TWO_WIDTHS,
    "granitemoehybrid": {"intermediate_size": 32, "shared_intermediate_size": 32},
    "jamba": {"intermediate_size": 32},
    "bailing_hybrid": _TWO_WIDTHS,
    "kimi_linear": _TWO_WIDTHS,
    "minimax": {"intermediate_size": 32},
    "lfm2_moe": {"intermediate_size": 64},
    "qwen3_next": {"shared_expert_intermediate_size": 32},
    "qwen3_5_moe": {"shared_expert_intermediate_size": 32},
    "step3p7": {"text_config": _TWO_WIDTHS | {"share_expert_dim": 32}},
}


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=lambda value: "-".join(value) if value else "plain")
def test_a_token_is_the_same_in_company(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    ids = torch.tensor(prompt(60))
    model = decoder(write(make(family, **WHOLE_PANELS.get(family, {}) | changes), tmp_path / "model"), native=True)
    assert model.decode_step is not None and model.decode_step.max_tokens == MAX_TOKENS
    alone = together(model, ids, 1)
    assert all(torch.equal(together(model, ids, size), alone) for size in (2, 3, 8))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8", "nf4", "q4", "q3"])
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "gemma4"])
def test_a_token_is_the_same_in_company_in_every_format(family: str, dtype: str, tmp_path: Path) -> None:
    compute = dtype if dtype in ("fp32", "fp16") else "bf16"
    model = decoder(write(make(family, **WHOLE_PANELS[family]), tmp_path), True, dtype, compute)
    ids = torch.tensor(prompt(60))
    assert torch.equal(together(model, ids, 5), together(model, ids, 1))


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gemma4", "llama4", "cohere2_moe"])
def test_a_token_is_the_same_in_company_where_experts_come_from_disk(family: str, tmp_path: Path) -> None:
    folder = write(make(family, **WHOLE_PANELS.get(family, {})), tmp_path / "model")
    store, ids = stores.packed(folder, tmp_path / "q8", "q8"), torch.tensor(prompt(60))
    streamed, resident = Seen(), Seen()
    found = together(stores.decoder(store, 3), ids, 5, streamed)
    assert torch.equal(found, together(stores.decoder(store, None), ids, 1, resident))
    assert sum(len(each.topk_ids) for each in streamed.routings) == sum(
        len(each.topk_ids) for each in resident.routings
    )


def test_texts_side_by_side_are_as_each_alone(tmp_path: Path) -> None:
    """Of different lengths, and with a window that has moved on in one of them."""
    model = decoder(write(make("mixtral", sliding_window=16), tmp_path), native=True)
    assert model.decode_step is not None
    texts = [torch.tensor(prompt(length)) for length in (5, 40, 23)]
    following = torch.tensor(prompt(63)[-36:]).view(12, 3)
    alone = []
    for text, tokens in zip(texts, following.t(), strict=True):
        cache = model.new_cache(len(text) + 12, 8)
        model.forward(text, cache)
        alone.append(torch.cat([model.forward(token, cache) for token in tokens.split(1)]))
    caches = [model.new_cache(len(text) + 12, 8) for text in texts]
    for text, cache in zip(texts, caches, strict=True):
        model.forward(text, cache)
    beside = torch.stack([model.forward_texts(tokens, caches) for tokens in following])
    assert torch.equal(beside, torch.stack(alone, 1))

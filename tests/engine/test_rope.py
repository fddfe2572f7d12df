"""Rotary positions: each kind of frequencies against its plain formula, and the rotation itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from moecli.engine.layers import RotaryEmbedding, frequencies
from moecli.model.families import read_spec
from moecli.model.spec import Rope, RopeKind

BASE = Rope(theta=10000.0, dims=16)
PAIRS = range(8)


def plain(pair: int, theta: float = 10000.0) -> float:
    return theta ** (-pair / 8)


def yarn(pair: int, rope: Rope) -> float:
    """Pairs that turn more than beta_fast times within the training context stay; below beta_slow they stretch."""

    def pair_that_turns(times: float) -> float:
        return 16 * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 15)
    stretched = min(max((pair - low) / ((high - low) or 0.001), 0), 1)
    return plain(pair) * (1 - stretched) + plain(pair) / rope.factor * stretched


def llama3(pair: int, rope: Rope) -> float:
    wavelength = 2 * math.pi / plain(pair)
    longest = rope.original_context / rope.low_frequency_factor
    shortest = rope.original_context / rope.high_frequency_factor
    if wavelength < shortest:
        return plain(pair)
    if wavelength > longest:
        return plain(pair) / rope.factor
    smooth = rope.original_context / wavelength - rope.low_frequency_factor
    smooth /= rope.high_frequency_factor - rope.low_frequency_factor
    return (1 - smooth) * plain(pair) / rope.factor + smooth * plain(pair)


YARN = replace(BASE, kind=RopeKind.YARN, factor=8.0, original_context=512)
LLAMA3 = replace(BASE, kind=RopeKind.LLAMA3, factor=8.0, original_context=512)
SHORT, LONG = tuple(1 + pair / 10 for pair in PAIRS), tuple(2 + pair for pair in PAIRS)
LONGROPE = replace(
    BASE, kind=RopeKind.LONGROPE, original_context=64, short_factors=tuple(SHORT), long_factors=tuple(map(float, LONG))
)
DYNAMIC = replace(BASE, kind=RopeKind.DYNAMIC, factor=2.0, original_context=64)

KINDS: dict[str, tuple[Rope, int, Callable[[int], float]]] = {
    "default": (BASE, 100, plain),
    "linear": (replace(BASE, kind=RopeKind.LINEAR, factor=4.0), 100, lambda pair: plain(pair) / 4),
    "yarn": (YARN, 100, lambda pair: yarn(pair, YARN)),
    "yarn untruncated": (replace(YARN, truncate=False), 0, lambda pair: yarn(pair, replace(YARN, truncate=False))),
    "yarn hard switch": (
        replace(YARN, beta_fast=1.0, beta_slow=1.0), 0, lambda p: yarn(p, replace(YARN, beta_fast=1.0, beta_slow=1.0))
    ),
    "llama3": (LLAMA3, 100, lambda pair: llama3(pair, LLAMA3)),
    "longrope, short text": (LONGROPE, 64, lambda pair: plain(pair) / SHORT[pair]),
    "longrope, long text": (LONGROPE, 65, lambda pair: plain(pair) / LONG[pair]),
    "dynamic, short text": (DYNAMIC, 64, plain),
    "dynamic, long text": (DYNAMIC, 128, lambda pair: plain(pair, 10000 * (2 * 128 / 64 - 1) ** (16 / 14))),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_frequencies_are_those_of_the_formula(name: str) -> None:
    rope, length, formula = KINDS[name]
    assert frequencies(rope, length).tolist() == pytest.approx([formula(pair) for pair in PAIRS], rel=1e-5)


def test_the_kinds_differ() -> None:
    """So that the comparison above could fail."""
    found = {name: tuple(frequencies(rope, length).tolist()) for name, (rope, length, _) in KINDS.items()}
    assert found.pop("dynamic, short text") == found["default"]
    assert len(set(found.values())) == len(found)


def test_llama3_with_an_empty_band_is_a_switch() -> None:
    switch = replace(LLAMA3, high_frequency_factor=1.0)
    expected = [plain(p) / 8 if 512 * plain(p) / (2 * math.pi) < 1 else plain(p) for p in PAIRS]
    assert frequencies(switch).tolist() == pytest.approx(expected, rel=1e-5)


def rotation(rope: Rope, positions: int = 80) -> RotaryEmbedding:
    return RotaryEmbedding(rope, positions, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [16, 24])  # 24: only the leading 16 dimensions turn
def test_each_pair_turns_by_its_angle(interleaved: bool, width: int) -> None:
    rope = replace(BASE, interleaved=interleaved, attention_factor=1.25)
    x = torch.randn(5, 3, width, dtype=torch.float32)
    turned = rotation(rope).rotate(x, start=7)
    for token in range(5):
        for pair in PAIRS:
            first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 8)
            angle = (7 + token) * plain(pair)
            a, b = x[token, :, first], x[token, :, second]
            assert torch.allclose(
                turned[token, :, first], 1.25 * (a * math.cos(angle) - b * math.sin(angle)), atol=1e-5
            )
            assert torch.allclose(
                turned[token, :, second], 1.25 * (b * math.cos(angle) + a * math.sin(angle)), atol=1e-5
            )
    assert torch.equal(turned[..., 16:], x[..., 16:])


def test_a_product_of_rotated_vectors_knows_only_their_distance() -> None:
    q, k = torch.randn(2, 1, 1, 16)
    turn = rotation(BASE)
    near, far = (float((turn.rotate(q, s + 9) * turn.rotate(k, s)).sum()) for s in (0, 60))
    assert near == pytest.approx(far, abs=1e-4)


def test_frequencies_follow_the_length_of_the_text() -> None:
    x = torch.randn(1, 1, 16)
    for rope, grown in ((LONGROPE, 65), (DYNAMIC, 79)):
        turn = rotation(rope)
        short = turn.rotate(x, 20)
        turn.prepare(64)
        assert torch.equal(turn.rotate(x, 20), short)
        turn.prepare(grown)
        assert not torch.allclose(turn.rotate(x, 20), short, atol=1e-3)
        turn.prepare(10)
        assert torch.equal(turn.rotate(x, 20), short)


def test_deepseek_scores_carry_the_squared_temperature() -> None:
    """0.1 m ln(s) + 1, squared, on the softmax scale; and its ratio of two on cosine and sine."""
    yarn_keys = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    config = {"architectures": ["DeepseekV2ForCausalLM"], "num_experts_per_tok": 6, "max_position_embeddings": 163840}

    def attention(**keys: float) -> tuple[float, float]:
        found = read_spec(config | {"rope_scaling": yarn_keys | keys}).layers[0].attention
        return found.scale * 192**0.5, found.rope.attention_factor

    assert attention(mscale=0.707, mscale_all_dim=0.707) == pytest.approx((1.5896, 1.0), abs=1e-4)
    assert attention(mscale=1.0, mscale_all_dim=1.0) == pytest.approx((1.8739, 1.0), abs=1e-4)
    assert attention() == pytest.approx((1.0, 0.1 * math.log(40) + 1), abs=1e-4)

"""What a layer does before it attends, in one launch: the cache holds the numbers that torch's operators put there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moecli.engine.attention import GroupedQueryAttention, LatentAttention, Scratch
from moecli.engine.cache import LayerCache
from moecli.engine.layers import RotaryEmbedding
from moecli.engine.weights import LayerWeights
from moecli.kernels.gpu.append import append, append_latents
from moecli.kernels.gpu.attention import attend, attend_latents
from moecli.model.spec import MLA, NO_ROPE, GroupedQuery, QkNorm, Rope
from tests.support.native_samples import gaussian

POSITIONS, ROWS, BEFORE, FIRST = 60, 40, 7, 5  # rows before the new tokens, and the position of row 0
ULP = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # of a number near 1


@pytest.fixture(autouse=True)
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with is torch's path."""
    monkeypatch.setenv("MOECLI_KERNEL", "torch")


def cache(spec: GroupedQuery | MLA, dtype: torch.dtype, device: torch.device) -> LayerCache:
    """A text of some tokens, of which the first are gone."""
    found = LayerCache(spec, ROWS, dtype, device)
    found.length, found.first = BEFORE + FIRST, FIRST
    for buffer in found.buffers:
        buffer[:, :BEFORE] = gaussian(*buffer[:, :BEFORE].shape).to(buffer)
    return found


def same(found: Tensor, wanted: Tensor) -> bool:
    """But for sums in another order, which now and then round to the next number."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    close = torch.allclose(found.float(), wanted.float(), rtol=ULP[found.dtype], atol=1e-6)
    return close and (found.dtype is torch.float32 or float((found == wanted).float().mean()) > 0.99)


def head_norms(spec: GroupedQuery, dtype: torch.dtype) -> dict[str, Tensor]:
    if spec.qk_norm is QkNorm.NONE:
        return {}
    full = spec.qk_norm is QkNorm.FULL
    widths = (spec.query_width, spec.kv_width) if full else (spec.head_dim, spec.head_dim)
    return {
        name: (1 + gaussian(width, seed=width) / 4).to(dtype)
        for name, width in zip(("q_norm", "k_norm"), widths, strict=True)
    }


CASES = [
    (Rope(theta=100.0, dims=24), torch.bfloat16, None),
    (Rope(theta=100.0, dims=24, interleaved=True, attention_factor=1.2), torch.float16, 0.7001),
    (Rope(theta=100.0, dims=10, interleaved=True), torch.float32, None),
    (Rope(theta=100.0, dims=8), torch.bfloat16, 0.7001),
    (NO_ROPE, torch.float16, None),
]


@pytest.mark.parametrize("qk_norm", [each for each in QkNorm if each is not QkNorm.UNWEIGHTED])  # left to torch
@pytest.mark.parametrize(("rope", "dtype", "clip"), CASES)
def test_grouped_queries(
    qk_norm: QkNorm, rope: Rope, dtype: torch.dtype, clip: float | None, device: torch.device
) -> None:
    spec = GroupedQuery(heads=4, kv_heads=2, head_dim=24, rope=rope, scale=0.2, qk_norm=qk_norm, clip=clip)
    width = spec.query_width + 2 * spec.kv_width
    # Products with ones change nothing: what is projected is x, and what is mixed comes out.
    norms = head_norms(spec, dtype)
    weights = {"qkv": torch.eye(width, dtype=dtype), "o": torch.eye(spec.query_width, dtype=dtype), **norms}
    rotary = RotaryEmbedding(rope, POSITIONS, dtype, torch.device("cpu"))
    by_torch = GroupedQueryAttention(spec, LayerWeights(weights), rotary, Scratch(), 1e-5)
    x, theirs, ours = gaussian(2, width).to(dtype), cache(spec, dtype, torch.device("cpu")), cache(spec, dtype, device)
    wanted = by_torch(x, theirs, 2)

    place = torch.tensor([ours.length, ours.first], dtype=torch.int32, device=device)
    q = append(
        x.to(device), *ours.buffers, place, tables=tuple(table.to(device) for table in rotary.tables),
        interleaved=rope.interleaved, clip=clip, qk_norm=qk_norm, eps=1e-5,
        **{name: weight.to(device) for name, weight in norms.items()},
    )  # fmt: skip
    for found, buffer in zip(ours.buffers, theirs.buffers, strict=True):
        assert same(found.cpu(), buffer)
    mixed = attend(q, *ours.buffers, place, scale=spec.scale).flatten(1).cpu()
    assert torch.allclose(mixed.float(), wanted.float(), atol=4 * ULP[dtype])


@pytest.mark.parametrize(
    ("interleaved", "dtype"), [(True, torch.bfloat16), (False, torch.float16), (True, torch.float32)]
)
def test_latents(interleaved: bool, dtype: torch.dtype, device: torch.device) -> None:
    rope = Rope(theta=100.0, dims=6, interleaved=interleaved)
    spec = MLA(
        heads=3, query_rank=None, kv_rank=20, nope_dim=10, rope_dim=6, value_dim=12, rope=rope, scale=0.3, norm_eps=1e-5
    )
    width = spec.heads * spec.head_dim
    weights = {
        "q": torch.eye(width, dtype=dtype),
        "kv_a": gaussian(spec.cache_width, width).div(width**0.5).to(dtype),
        "kv_a_norm": (1 + gaussian(20) / 4).to(dtype),
        "kv_b": gaussian(spec.heads * 22, 20).div(20**0.5).to(dtype),
        "o": torch.eye(spec.heads * 12, dtype=dtype),
    }
    rotary = RotaryEmbedding(rope, POSITIONS, dtype, torch.device("cpu"))
    by_torch = LatentAttention(spec, LayerWeights(weights), rotary, Scratch())
    x, theirs, ours = gaussian(3, width).to(dtype), cache(spec, dtype, torch.device("cpu")), cache(spec, dtype, device)
    wanted = by_torch(x, theirs, 3)

    place = torch.tensor([ours.length, ours.first], dtype=torch.int32, device=device)
    queries = x.to(device).view(3, spec.heads, -1)
    q_nope, q_rope = queries.split((10, 6), -1)
    call = {
        "norm": weights["kv_a_norm"].to(device), "eps": 1e-5, "interleaved": interleaved,
        "tables": tuple(table.to(device) for table in rotary.tables),
    }  # fmt: skip
    low = (x @ weights["kv_a"].t()).to(device)
    rotated = append_latents(low, q_rope, ours.buffers[0][0], place, **call)
    assert same(ours.buffers[0].cpu(), theirs.buffers[0])
    assert same(rotated.cpu(), rotary.rotate(q_rope.cpu(), ours.length))
    assert append_latents(low, q_rope, ours.buffers[0][0], place, out=q_rope, **call) is q_rope
    assert torch.equal(q_rope, rotated)

    expand_key, expand_value = weights["kv_b"].view(3, 22, 20).split((10, 12), 1)
    absorbed = torch.bmm(q_nope.transpose(0, 1).cpu(), expand_key).transpose(0, 1).to(device)
    mixed = attend_latents(absorbed, rotated, ours.buffers[0][0], place, scale=spec.scale).cpu()
    found = torch.bmm(mixed.transpose(0, 1), expand_value.transpose(1, 2)).transpose(0, 1).flatten(1)
    assert torch.allclose(found.float(), wanted.float(), atol=4 * ULP[dtype])


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    place = torch.zeros(2, dtype=torch.int32, device=device)
    keys, qkv, tables = (
        torch.zeros(2, 9, 8, device=device),
        torch.zeros(3, 64, device=device),
        (torch.zeros(9, 8, device=device),) * 2,
    )
    with pytest.raises(ValueError, match="do not meet keys"):
        append(qkv[:, :32], keys, keys, place, tables=tables)
    with pytest.raises(ValueError, match="types"):
        append(qkv, keys.half(), keys, place, tables=tables)
    with pytest.raises(ValueError, match="do not make a norm"):
        append(qkv, keys, keys, place, tables=tables, qk_norm=QkNorm.HEAD)
    latents, norm = torch.zeros(9, 20, device=device), torch.zeros(12, device=device)
    with pytest.raises(ValueError, match="do not meet latents"):
        append_latents(qkv, keys, latents, place, norm=norm, eps=0, tables=tables)
    assert append(qkv[:0], keys, keys, place, tables=tables).shape == (0, 4, 8)

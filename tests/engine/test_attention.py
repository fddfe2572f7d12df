"""Attention in blocks of queries against torch's own, and against the formula where torch has none."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from moecli.engine import attention
from moecli.engine.attention import attend
from tests.support.checkpoints import make, prompt, write
from tests.support.running import load, score


def tensors(kv_heads: int, groups: int, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(queries * 1000 + keys)
    q = torch.randn(kv_heads, groups, queries, 8).permute(2, 0, 1, 3).flatten(1, 2)
    return q, torch.randn(kv_heads, keys, 8), torch.randn(kv_heads, keys, 6)


def by_heads(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[T, H, d] as [K, G, T, d]."""
    return q.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)


@pytest.fixture(params=["torch", "native"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who attends: torch in blocks, or the library."""
    monkeypatch.setenv("MOECLI_KERNEL", request.param)
    return str(request.param)


def visible(queries: int, keys: int, offset: int, window: int | None) -> torch.Tensor:
    distance = torch.arange(offset, offset + queries)[:, None] - torch.arange(keys)
    return (distance >= 0) & (distance < (window or keys + 1))


@pytest.mark.slow
@pytest.mark.parametrize("scores", [1, 50, 1000, 4_000_000])
@pytest.mark.parametrize(("queries", "offset"), [(1, 0), (1, 20), (13, 0), (13, 20), (3, 63), (3, 64)])
@pytest.mark.parametrize(("kv_heads", "groups"), [(1, 4), (2, 2), (3, 1)])
def test_blocks_of_any_size_agree_with_torch(
    kv_heads: int, groups: int, queries: int, offset: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOECLI_KERNEL", "torch")
    monkeypatch.setattr(attention, "SCORES", scores)
    keys = offset + queries
    for window, (spare, bucket) in product((None, 1, 5, 100), ((0, 64), (100, 64), (3, 4), (9, 4))):
        monkeypatch.setattr(attention, "BUCKET", bucket)  # how many keys are read at once, some of them spare rows
        q, k, v = tensors(kv_heads, groups, queries, keys + spare)
        found = attend(q, k, v, scratch=attention.Scratch(), scale=0.7, start=offset, window=window)
        mask = visible(queries, keys, offset, window)
        expected = F.scaled_dot_product_attention(
            by_heads(q, kv_heads), k[:, None, :keys], v[:, None, :keys], attn_mask=mask, scale=0.7
        )
        assert torch.allclose(found, expected.permute(2, 0, 1, 3).flatten(1), atol=1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("scores", [1, 4_000_000])
def test_a_cap_bends_scores_before_the_mask(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    q, k, v = tensors(2, 2, 9, 9)
    found = attend(q, k, v, scratch=attention.Scratch(), scale=0.7, start=0, softcap=1.5)
    bent = 1.5 * torch.tanh(torch.einsum("kgtd,knd->kgtn", by_heads(q, 2), k) * 0.7 / 1.5)
    shares = bent.masked_fill(~visible(9, 9, 0, None), -torch.inf).softmax(-1)
    expected = torch.einsum("kgtn,knw->tkgw", shares, v).flatten(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [1, 5, 8, 100])
@pytest.mark.parametrize(("queries", "start", "first"), [(1, 0, 0), (13, 0, 0), (13, 20, 0), (3, 63, 55), (9, 16, 12)])
def test_chunks_begin_anew_and_sinks_take_their_part(queries: int, start: int, first: int, size: int) -> None:
    q, k, v = tensors(2, 3, queries, start + queries)
    sinks = torch.randn(6)
    found = attend(
        q, k[:, first:], v[:, first:], scratch=attention.Scratch(), scale=0.7, start=start, first=first, window=size,
        chunked=True, sinks=sinks,
    )  # fmt: skip
    positions = torch.arange(start + queries)
    seen = visible(queries, start + queries, start, None) & (positions[start:, None] // size == positions // size)
    seen &= positions >= first
    scores = torch.einsum("kgtd,knd->kgtn", by_heads(q, 2), k) * 0.7
    with_sinks = torch.cat(
        (scores.masked_fill(~seen, -torch.inf), sinks.view(2, 3, 1, 1).expand(-1, -1, queries, 1)), -1
    )
    expected = torch.einsum("kgtn,knw->tkgw", with_sinks.softmax(-1)[..., :-1], v).flatten(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_latents_give_the_same_absorbed_and_expanded(
    family: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few queries never expand the cache, many do; and heads may be expanded one at a time."""
    decoder = load(write(make(family), tmp_path_factory.mktemp(family)))
    ids = prompt(40)
    native = score(decoder, ids)
    monkeypatch.setenv("MOECLI_KERNEL", "torch")
    monkeypatch.setattr(attention, "_ABSORB", 0)
    expanded = score(decoder, ids)
    monkeypatch.setattr(attention, "SCORES", 1)
    one_head_at_a_time = score(decoder, ids)
    monkeypatch.setattr(attention, "_ABSORB", 1000)
    absorbed = score(decoder, ids)
    assert torch.allclose(one_head_at_a_time, expanded, atol=1e-5)
    assert torch.allclose(absorbed, expanded, atol=1e-5)
    assert torch.allclose(native, expanded, atol=1e-5)

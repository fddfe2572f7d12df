"""Native attention of prompts is that of the formula, and a token's bits depend on what it sees alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moecli.kernels import library, prompt_attention
from tests.support.native_samples import gaussian, on_every_isa

pytestmark = pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
PRECISIONS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # and the error that its rounding makes
TOKENS = st.one_of(st.integers(1, 40), st.sampled_from([95, 97, 130]))
BEFORE = st.one_of(st.integers(0, 5), st.sampled_from([95, 96, 130]))
WINDOWS = st.one_of(st.none(), st.integers(1, 10), st.sampled_from([64, 96, 97, 150, 1000]))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    library.use_isa(library.isas()[0])
    torch.set_num_threads(1)


def by_formula(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    start: int,
    first: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """In double precision: queries [T, H, d], keys [K, rows, d], values [K, rows, w]."""
    grouped = queries.double().unflatten(1, (keys.shape[0], -1))
    scores = torch.einsum("tkgd,knd->kgtn", grouped, keys.double()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(start, start + len(queries))[:, None] - torch.arange(first, first + keys.shape[1])
    hidden = (distance < 0) | (distance >= (window or 1 << 40))
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        column = sinks.double().view(*scores.shape[:2], 1, 1).expand(-1, -1, scores.shape[2], -1)
        scores = torch.cat((scores, column), -1)
    shares = scores.softmax(-1)[..., : keys.shape[1]]
    return torch.einsum("kgtn,knw->tkgw", shares, values.double()).flatten(1)


def expanded(latents: Tensor, expansion: Tensor, nope_dim: int) -> tuple[Tensor, Tensor]:
    """Keys [H, rows, d] and values [H, rows, w] of latents [rows, rank + rope], in double precision."""
    rank = expansion.shape[2]
    both = torch.einsum("nr,hwr->hnw", latents[:, :rank].double(), expansion.double())
    rotated = latents[:, rank:].double().expand(len(expansion), -1, -1)
    return torch.cat((both[..., :nope_dim], rotated), -1), both[..., nope_dim:]


def check_independence(attend: Callable[..., Tensor], queries: Tensor, start: int) -> None:
    """Neither threads nor the other tokens of a call change a bit."""
    whole = attend(queries, start=start)
    torch.set_num_threads(3)
    assert torch.equal(attend(queries, start=start), whole)
    for cut in {1, len(queries) // 3, len(queries) - 1} - {0, len(queries)}:
        parts = attend(queries[:cut], start=start), attend(queries[cut:], start=start + cut)
        assert torch.equal(torch.cat(parts), whole)
    torch.set_num_threads(1)


@pytest.mark.slow
@settings(max_examples=40)
@example((1, 140), (8, 8), 3, 97, 7, None, None, torch.bfloat16)
@example((1, 1), (64, 64), 300, 97, 7, 100, None, torch.float32)
@given(
    heads=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 7])),
    widths=st.tuples(st.sampled_from([1, 6, 8, 24, 66]), st.sampled_from([1, 8, 20, 33])),
    tokens=TOKENS,
    before=BEFORE,
    gone=st.integers(0, 200),
    window=WINDOWS,
    softcap=st.sampled_from([None, 0.5, 30.0]),
    precision=st.sampled_from(list(PRECISIONS)),
)
def test_grouped_queries(
    heads: tuple[int, int],
    widths: tuple[int, int],
    tokens: int,
    before: int,
    gone: int,
    window: int | None,
    softcap: float | None,
    precision: torch.dtype,
) -> None:
    (kv_heads, group), (dim, value_dim) = heads, widths
    queries = gaussian(tokens, kv_heads * group * dim).view(tokens, -1, dim).to(precision)
    rows = before + tokens + 3
    keys = gaussian(kv_heads * rows, dim, seed=1).view(kv_heads, rows, dim).to(precision)
    values = gaussian(kv_heads * rows, value_dim, seed=2).view(kv_heads, rows, value_dim).to(precision)
    options = {"scale": 1.5 / dim**0.5, "window": window, "softcap": softcap}
    attend = partial(prompt_attention.grouped_query, keys=keys, values=values, first=gone, **options)
    found = on_every_isa(lambda: attend(queries, start=gone + before))
    assert found.dtype == precision
    wanted = by_formula(queries, keys, values, start=before, **options)
    assert (found - wanted).abs().max() <= PRECISIONS[precision] * values.abs().max()
    check_independence(attend, queries, gone + before)


@pytest.mark.slow
@settings(max_examples=25)
@example(130, (8, 4, 6, 24), 3, 97, 7, None, torch.bfloat16)
@example(1, (17, 2, 40, 33), 520, 0, 0, None, torch.float32)
@given(
    heads=st.sampled_from([1, 2, 5]),
    widths=st.sampled_from([(8, 4, 6, 24), (1, 1, 1, 1), (17, 2, 40, 33)]),
    tokens=TOKENS,
    before=BEFORE,
    gone=st.integers(0, 200),
    window=WINDOWS,
    precision=st.sampled_from(list(PRECISIONS)),
)
def test_latents(
    heads: int,
    widths: tuple[int, int, int, int],
    tokens: int,
    before: int,
    gone: int,
    window: int | None,
    precision: torch.dtype,
) -> None:
    nope_dim, rope_dim, value_dim, rank = widths
    queries = gaussian(tokens, heads * (nope_dim + rope_dim)).view(tokens, heads, -1).to(precision)
    latents = gaussian(before + tokens + 3, rank + rope_dim, seed=1).to(precision)
    expansion = gaussian(heads * (nope_dim + value_dim), rank, seed=2).view(heads, -1, rank) / rank**0.5
    expansion = expansion.to(precision)
    keys, values = expanded(latents, expansion, nope_dim)
    options = {"scale": 1 / (nope_dim + rope_dim) ** 0.5, "window": window}
    wanted = by_formula(queries, keys, values, start=before, **options)
    attend = partial(
        prompt_attention.latent, latents=latents, expansion=expansion, nope_dim=nope_dim, first=gone, **options
    )
    for expand in (False, True):
        found = on_every_isa(partial(attend, queries, start=gone + before, expand=expand))
        assert (found - wanted).abs().max() <= PRECISIONS[precision] * values.abs().max()
        check_independence(partial(attend, expand=expand), queries, gone + before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_of_any_size(precision: torch.dtype) -> None:
    """Of a far larger key all others vanish, wherever it lies; what is not finite stays in sight, and in its token."""
    queries, keys, values = (gaussian(300, 8, seed=seed).to(precision) for seed in range(3))
    keys[150] = 100 * queries[250]
    queries[20], queries[30] = torch.nan, torch.inf
    found = on_every_isa(
        lambda: prompt_attention.grouped_query(
            queries[:, None], keys[None], values[None], scale=10, start=0
        ).nan_to_num(nan=1e4)
    )
    assert torch.equal(found[250], values[150])
    assert bool((found[[20, 30]] == 1e4).all()) and bool((found[[19, 21, 29, 31]] != 1e4).all())


def test_views() -> None:
    """Queries beside the keys of the same projection, as attention has them, and any other strides."""
    both, cache = gaussian(9, 48), gaussian(18, 8, seed=1).view(2, 9, 8)
    attend = partial(prompt_attention.grouped_query, keys=cache, values=cache, scale=1, start=0)
    queries = both.view(9, 6, 8)[:, :4]
    assert torch.equal(attend(queries), attend(queries.clone()))
    assert torch.equal(attend(queries.flip(0).flip(0)), attend(queries.clone()))
    turned = cache.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend(queries, keys=turned, values=turned), attend(queries))
    assert attend(queries[:0]).shape == (0, 32)


def test_what_does_not_fit_is_refused() -> None:
    queries, cache = gaussian(4, 32).view(4, 4, 8), gaussian(18, 8).view(2, 9, 8)
    attend = partial(prompt_attention.grouped_query, scale=1, start=0)
    three = cache[:1].expand(3, 9, 8)
    for keys, values in ((cache[..., :7], cache), (cache[:1], cache), (three, three)):
        with pytest.raises(ValueError, match="do not meet keys"):
            attend(queries, keys, values)
    for keys, values in ((cache.half(), cache.half()), (cache, cache.to("meta"))):
        with pytest.raises(ValueError, match="types"):
            attend(queries, keys, values)
    for start, first in ((6, 0), (0, 1)):
        with pytest.raises(ValueError, match="do not stand at"):
            attend(queries, cache, cache, start=start, first=first)
    with pytest.raises(ValueError, match="do not meet latents"):
        prompt_attention.latent(queries, cache[0], gaussian(4, 9).view(4, 3, 3), nope_dim=2, scale=1, start=0)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_sinks_take_their_part_of_the_softmax(dtype: torch.dtype, window: int | None) -> None:
    """One far above every score leaves next to nothing, one far below is as if it were not there."""
    queries, keys, values = (gaussian(*shape, seed=n).to(dtype) for n, shape in enumerate(_SHAPES))
    sinks = torch.tensor([0.5, -100.0, 3.0, 60.0, -2.0, 0.0], dtype=dtype)
    attend = partial(prompt_attention.grouped_query, keys=keys, values=values, scale=0.3, window=window)
    found = on_every_isa(lambda: attend(queries, start=90, sinks=sinks))
    expected = by_formula(queries, keys, values, scale=0.3, start=90, window=window, sinks=sinks)
    assert (found - expected).abs().max() <= PRECISIONS[dtype] * (1 + expected.abs().max())
    heads = found.unflatten(1, (6, -1))
    assert torch.equal(heads[:, 1], attend(queries, start=90).unflatten(1, (6, -1))[:, 1])
    assert heads[:, 3].abs().max() < 1e-6 < heads[:, 1].abs().max()
    check_independence(partial(attend, sinks=sinks), queries, 90)
    with pytest.raises(ValueError, match="6 heads do not have sinks"):
        attend(queries, start=90, sinks=sinks[:2])


_SHAPES = (20, 6, 16), (2, 110, 16), (2, 110, 16)

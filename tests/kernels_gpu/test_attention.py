"""Attention by Triton is that of the formula: few queries and many, grouped and over latents, whatever the card."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from moecli.kernels.gpu.attention import Widths, attend, attend_latents, choose_tiling
from moecli.kernels.gpu.launch import Card
from tests.support.native_samples import gaussian

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
PRECISIONS = {FP32: 1e-5, FP16: 2e-3, BF16: 2e-2}  # and the error that its rounding makes
CARDS = {
    "turing": Card((7, 5), 40, 64 * 2**10),
    "ampere": Card((8, 0), 108, 163 * 2**10),
    "ada": Card((8, 9), 24, 99 * 2**10),
    "hopper": Card((9, 0), 132, 227 * 2**10),
}


def placed(start: int, first: int, device: torch.device) -> Tensor:
    return torch.tensor([start, first], dtype=torch.int32, device=device)


def by_formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    own: int,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """In double precision; query 0's own key lies in row `own`."""
    q, k, v = (each.double().cpu().nan_to_num() for each in (q, k, v))
    scores = torch.einsum("tkgd,knd->kgtn", q.unflatten(1, (len(k), -1)), k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(own, own + len(q))[:, None] - torch.arange(k.shape[1])
    scores = scores.masked_fill((distance < 0) | (distance >= (window or 1 << 40)), -torch.inf)
    if sinks is not None:
        sink = sinks.double().cpu().view(len(k), -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), -1)
    return torch.einsum("kgtn,knw->tkgw", scores.softmax(-1)[..., : k.shape[1]], v).flatten(1, 2)


def cache(heads: int, own: int, tokens: int, width: int, spare: int = 70, seed: int = 1) -> Tensor:
    """Rows before and of `tokens` whose first is row `own`; nobody may look at what lies after them."""
    rows = gaussian(heads, own + tokens + spare, width, seed=seed)
    rows[:, own + tokens :] = torch.nan
    return rows


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "group", "widths", "own", "precision", "options"),
    [
        (1, 2, 4, (128, 128), 300, BF16, {}),
        (1, 2, 4, (128, 128), 130, FP16, {"window": 128}),
        (1, 1, 1, (64, 64), 0, FP32, {"softcap": 2.0}),
        (2, 2, 3, (96, 96), 30, FP32, {"window": 20}),
        (8, 1, 6, (24, 20), 64, BF16, {"window": 7, "softcap": 1.5}),
        (5, 3, 1, (192, 128), 63, FP16, {}),
        (30, 1, 2, (8, 8), 61, FP32, {"softcap": 2.0}),
        (90, 1, 2, (80, 16), 0, BF16, {}),
        (150, 2, 1, (16, 16), 70, FP16, {"window": 33}),
        (130, 1, 1, (16, 16), 0, BF16, {"window": 1}),
        (70, 1, 4, (16, 16), 200, FP16, {"window": 1000, "softcap": 2.0}),
    ],
)
def test_grouped_queries(
    tokens: int,
    kv_heads: int,
    group: int,
    widths: tuple[int, int],
    own: int,
    precision: torch.dtype,
    options: dict[str, float],
    device: torch.device,
) -> None:
    dim, value = widths
    q = gaussian(tokens, kv_heads * group, dim).to(device, precision)
    k, v = (cache(kv_heads, own, tokens, w, seed=w).to(device, precision) for w in (dim, value + 1))
    options = {"scale": 1.5 / dim**0.5, **options}
    found = attend(q, k, v[..., 1:], placed(own + 9, 9, device), **options)
    wanted = by_formula(q, k, v[..., 1:], own=own, **options)
    assert found.dtype == precision and found.shape == (tokens, kv_heads * group, value)
    assert (found.cpu() - wanted).abs().max() <= PRECISIONS[precision] * wanted.abs().max()


@pytest.mark.parametrize(
    ("tokens", "heads", "rank", "rope", "own", "window", "precision"),
    [
        (1, 16, 512, 64, 70, None, BF16),
        (3, 2, 40, 24, 130, 70, FP16),
        (1, 3, 16, 16, 0, None, FP32),
        (40, 4, 40, 8, 33, None, BF16),
        (70, 1, 64, 16, 64, 50, FP16),
    ],
)
def test_latents(
    tokens: int,
    heads: int,
    rank: int,
    rope: int,
    own: int,
    window: int | None,
    precision: torch.dtype,
    device: torch.device,
) -> None:
    both = gaussian(heads, tokens, rank + rope).to(device, precision).transpose(0, 1)  # as products by heads leave them
    latents = cache(1, own, tokens, rank + rope).to(device, precision)
    options = {"scale": 1 / (rank + rope) ** 0.5, "window": window}
    q, place = both.split((rank, rope), -1), placed(own, 0, device)
    found = attend_latents(*q, latents[0], place, **options)
    wanted = by_formula(both, latents, latents[..., :rank], own=own, **options)
    assert (found.cpu() - wanted).abs().max() <= PRECISIONS[precision] * wanted.abs().max()


@pytest.mark.parametrize(("tokens", "capacity"), [(1, 15), (1, 100), (20, 30)])
def test_a_sink_takes_its_share(tokens: int, capacity: int, device: torch.device) -> None:
    q = gaussian(tokens, 2, 16).to(device)
    k, v = (gaussian(1, capacity, 16, seed=seed).to(device) for seed in (1, 2))
    sinks = torch.tensor([1.0, 100.0], device=device)
    own = capacity - tokens
    found = attend(q, k, v, placed(own, 0, device), scale=0.3, sinks=sinks).cpu()
    wanted = by_formula(q, k, v, scale=0.3, own=own, sinks=sinks)
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    assert found[:, 1].abs().max() < 1e-30


def test_one_call_serves_every_length(device: torch.device) -> None:
    """As in a CUDA graph: the same memory, and what changes lies in it."""
    k, v = (gaussian(1, 300, 32, seed=seed).to(device) for seed in (1, 2))
    q, place, out = gaussian(2, 2, 32).to(device), placed(0, 0, device), torch.empty(2, 2, 32, device=device)
    for start, first in ((0, 0), (14, 0), (16, 0), (290, 0), (7000, 6710), (7000, 7000)):
        place.copy_(placed(start, first, device))
        assert attend(q, k, v, place, scale=0.2, window=100, out=out) is out
        wanted = by_formula(q, k, v, scale=0.2, own=start - first, window=100)
        assert torch.allclose(out.cpu().double(), wanted, atol=1e-5)


def test_chunks_make_no_difference_but_rounding(device: torch.device) -> None:
    q = gaussian(70, 1, 32).to(device)
    k, v = (gaussian(1, 70, 32, seed=seed).to(device) for seed in (1, 2))
    call = partial(attend, k=k, v=v, scale=0.2, window=40)
    whole = call(q, place=placed(0, 0, device))
    parts = [call(part, place=placed(25 * i, 0, device)) for i, part in enumerate(q.split(25))]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


@pytest.mark.parametrize(("tokens", "precision"), [(3, FP32), (3, BF16), (70, FP16)])
def test_scores_of_any_size(tokens: int, precision: torch.dtype, device: torch.device) -> None:
    """Of a far larger key all others vanish; what is not finite stays in sight, and in its token."""
    q = gaussian(tokens, 2, 16).to(device, precision)
    k, v = (gaussian(1, 200 + tokens, 16, seed=seed).to(device, precision) for seed in (1, 2))
    k[0, 90] = 100 * q[2, 1]
    q[0], q[1, 1] = torch.nan, torch.inf
    found = attend(q, k, v, placed(200, 0, device), scale=10).cpu()
    assert torch.equal(found[2, 1], v[0, 90].cpu())
    assert bool(found[0].isnan().all()) and bool(found[1, 1].isnan().all())
    assert bool(found[1, 0].isfinite().all()) and bool(found[2:].isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "strides"), [((1, 2**27 + 64, 16), (2**31, 16, 1)), ((2, 64, 16), (2**31, 16, 1))], ids=["rows", "heads"]
)
def test_a_cache_of_more_numbers_than_an_int_counts(
    shape: tuple[int, ...], strides: tuple[int, ...], device: torch.device
) -> None:
    """Its memory is never touched but where the keys lie."""
    k = torch.empty(2**31 + 1024, dtype=torch.float16, device=device).as_strided(shape, strides)
    q = gaussian(1, 2, 16).half().to(device)
    seen = k[:, -64:].copy_(gaussian(len(k), 64, 16))
    found = attend(q, k, k, placed(k.shape[1] - 1, 0, device), scale=1, window=64)
    wanted = by_formula(q, seen, seen, scale=1, own=63)
    assert (found.cpu() - wanted).abs().max() < 1e-2


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("tokens", [1, 8, 512])
def test_every_card_has_a_tiling(card: str, tokens: int) -> None:
    """Programs enough for its processors, and no more than twice as many as share a tile."""
    chosen = CARDS[card]
    for heads, group, widths in (
        (8, 4, Widths(128, 0, 128)),
        (16, 1, Widths(128, 64, 128)),
        (1, 16, Widths(512, 64, 512, True)),
    ):
        tiling = choose_tiling(tokens, group, heads, 32768, widths, 2, chosen)
        tiles = -(-tokens * group // tiling.rows) * heads
        programs = tiles * tiling.splits
        assert programs >= min(chosen.processors / 2, 128) and (tiling.splits == 1 or programs <= 2 * chosen.processors)
        assert tiling.splits & (tiling.splits - 1) == 0
        key = widths.first + widths.rest
        block = tiling.keys * (key + (0 if widths.shared else widths.value))
        assert 2 * (tiling.rows * key + (tiling.stages - 1) * block) <= chosen.shared or card == "turing"
    assert choose_tiling(tokens, 4, 8, 16, Widths(128, 0, 128), 2, chosen).splits == 1


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    q, rows, place = gaussian(4, 4, 8).to(device), gaussian(2, 9, 8).to(device), placed(0, 0, device)
    call = partial(attend, place=place, scale=1)
    for k, v in ((rows[..., :7], rows), (rows[:1], rows), (rows.new_zeros(3, 9, 8), rows.new_zeros(3, 9, 8))):
        with pytest.raises(ValueError, match="do not meet keys"):
            call(q, k, v)
    with pytest.raises(ValueError, match="types"):
        call(q, rows.half(), rows.half())
    with pytest.raises(ValueError, match="does not go to"):
        call(q, rows, rows, out=q[..., :7])
    with pytest.raises(ValueError, match="do not meet latents"):
        attend_latents(q, q[..., :3], rows[0], place, scale=1)
    assert call(q[:0], rows, rows).shape == (0, 4, 8)

"""Native attention of a prompt: many queries over a layer's cache, in float32 whatever the cache holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moecli.kernels import abi
from moecli.kernels.choice import forced
from moecli.kernels.library import library, loaded
from moecli.kernels.native import NUMBERS


def serves(queries: Tensor) -> bool:
    """Whether these queries can be taken natively: on the CPU, where nobody forces another kernel."""
    return queries.is_cpu and queries.dtype in NUMBERS and forced() in (None, "native") and library() is not None


def grouped_query(
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
    """Causal attention of queries [T, H, d] over keys [K, rows, d] and values [K, rows, w]: [T, H * w].

    H / K heads after one another share keys. Query 0 stands at position `start`, row 0 at position `first`; a query
    sees the keys up to its own position, of these the last `window`. Scores are bent to `softcap` * tanh(score /
    `softcap`). `sinks` [H] are scores without a value that take part in the softmax. A token's result depends on its
    position, its query, keys and values alone, to the last bit: not on the other tokens, on `first` or on threads.
    ValueError if shapes, types or places do not agree.
    """
    heads, dim = queries.shape[1:]
    kv_heads, rows, value_dim = values.shape
    if keys.shape != (kv_heads, rows, dim) or heads % kv_heads:
        raise ValueError(
            f"{heads} heads of {dim} numbers do not meet keys {tuple(keys.shape)} and values {tuple(values.shape)}"
        )
    keys, values = keys.contiguous(), values.contiguous()
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"{heads} heads do not have sinks {tuple(sinks.shape)}")
    sinks = None if sinks is None else sinks.contiguous()
    return _attend(
        queries,
        (keys, values) if sinks is None else (keys, values, sinks),
        start - first,
        rows,
        values=values.data_ptr(),
        sinks=None if sinks is None else sinks.data_ptr(),
        kv_heads=kv_heads,
        value_dim=value_dim,
        scale=scale,
        start=start,
        first=first,
        window=window or 0,
        softcap=softcap or 0,
    )


def latent(
    queries: Tensor,
    latents: Tensor,
    expansion: Tensor,
    *,
    nope_dim: int,
    scale: float,
    start: int,
    first: int = 0,
    window: int | None = None,
    prompt: int | None = None,
    expand: bool | None = None,
) -> Tensor:
    """The same over latents [rows, rank + rope], with queries [T, H, nope_dim + rope]: [T, H * w].

    `expansion` [H, nope_dim + w, rank] makes of a latent's first numbers what of a head's key does not rotate, and its
    value. `expand` says whether keys and values are expanded, a block at a time, or the queries meet the latents as
    they are; None chooses what takes less arithmetic for a `prompt` of so many tokens, these alone unless it is said.
    Results of both differ by roundings.
    """
    tokens, heads, dim = queries.shape
    rows, width = latents.shape
    rank, value_dim = expansion.shape[2], expansion.shape[1] - nope_dim
    if width != rank + dim - nope_dim or len(expansion) != heads:
        raise ValueError(
            f"{heads} heads of {dim} numbers do not meet latents {tuple(latents.shape)} expanded by "
            f"{tuple(expansion.shape)}"
        )
    if expand is None:
        expand = expansion_pays(prompt or tokens, rank, nope_dim, value_dim)
    latents, expansion = latents.contiguous(), expansion.contiguous()
    return _attend(
        queries,
        (latents, expansion),
        start - first,
        rows,
        expansion=expansion.data_ptr(),
        kv_heads=heads if expand else 1,
        value_dim=value_dim,
        rank=rank,
        nope_dim=nope_dim,
        scale=scale,
        start=start,
        first=first,
        window=window or 0,
    )


def expansion_pays(tokens: int, rank: int, nope_dim: int, value_dim: int) -> bool:
    """Whether so many queries take less arithmetic with keys and values expanded than with latents as they are."""
    return tokens * (2 * rank - nope_dim - value_dim) > rank * (nope_dim + value_dim)


def longest_absorbed(rank: int, nope_dim: int, value_dim: int) -> int:
    """The longest prompt whose keys and values are not expanded; 0 where none ever is, or all are."""
    saved = 2 * rank - nope_dim - value_dim
    return rank * (nope_dim + value_dim) // saved if saved > 0 else 0


def _attend(queries: Tensor, others: tuple[Tensor, ...], row: int, rows: int, **call: Any) -> Tensor:
    """`others`: keys or latents, what makes values of them, and sinks if there are any. Query 0's key is in `row`."""
    tokens, heads, dim = queries.shape
    if any(each.dtype != queries.dtype or not each.is_cpu for each in (queries, *others)):
        raise ValueError("queries, keys and values are of different types, or not all on the CPU")
    if row < 0 or row + tokens > rows:
        raise ValueError(f"{tokens} queries from row {row} on do not stand at {rows} keys")
    if queries.stride()[1:] != (dim, 1):
        queries = queries.contiguous()
    output = queries.new_empty(tokens, heads * call["value_dim"])
    found = loaded()
    arguments = abi.PromptAttention(
        pool=found.thread_pool(),
        type=NUMBERS[queries.dtype],
        queries=queries.data_ptr(),
        keys=others[0].data_ptr(),
        output=output.data_ptr(),
        tokens=tokens,
        heads=heads,
        head_dim=dim,
        rows=rows,
        query_stride=queries.stride(0),
        **call,
    )
    found.call("prompt_attention", arguments)
    return output

"""The KV cache: preallocated, appended in place, never copied per token."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.model.spec import MLA, Attention, GroupedQuery, ModelSpec
from moecli.planning.memory import cache_rows


class LayerCache:
    """What one layer remembers: keys [K, rows, d] and values [K, rows, w], or latents [1, rows, rank + rope]."""

    def __init__(self, attention: Attention, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        shapes = (
            [(1, attention.cache_width)]
            if isinstance(attention, MLA)
            else [(attention.kv_heads, attention.head_dim), (attention.kv_heads, attention.value_head_dim)]
        )
        self._window = attention.window
        self._chunked = isinstance(attention, GroupedQuery) and attention.chunked
        # Zeroed, not empty: attention reads some rows past the end, at weight 0.
        self.buffers = tuple(torch.zeros(heads, rows, width, dtype=dtype, device=device) for heads, width in shapes)
        self.first = 0  # position of row 0
        self.length = 0  # positions seen
        self.cross: LayerCache | None = None  # of the text that an encoder read

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The rows in use of each buffer."""
        return tuple(buffer[:, : self.length - self.first] for buffer in self.buffers)

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Add [T, heads, width] tensors; returns the buffers [heads, rows, width], filled up to `length - first`."""
        added = len(new[0])
        end = self._grow(added)
        for buffer, rows_added in zip(self.buffers, new, strict=True):
            buffer[:, end - added : end] = rows_added.transpose(0, 1)
        return self.buffers

    def extend(self, added: int) -> list[tuple[int, range]]:
        """Make room for more tokens: of each its position and the rows that it sees, its own, to be filled, last."""
        start = self.length
        end = self._grow(added) - added
        return [(start + i, range(max(0, self._seen_from(start + i) - self.first), end + i + 1)) for i in range(added)]

    def _seen_from(self, position: int) -> int:
        """The first position that a token at this one sees."""
        if self._window is None:
            return 0
        return position // self._window * self._window if self._chunked else position + 1 - self._window

    def _grow(self, added: int) -> int:
        """The end of the rows in use, with room for `added` before it."""
        if self.length - self.first + added > self.buffers[0].shape[1]:
            self._slide()
        self.length += added
        return self.length - self.first

    def _slide(self) -> None:
        """Move the last window - 1 positions, all that coming queries can see, to the front."""
        assert self._window is not None, "a full cache never grows past its capacity"
        keep = min(self._window - 1, self.length - self.first)
        for buffer in self.buffers:
            end = self.length - self.first
            buffer[:, :keep] = buffer[:, end - keep : end].clone()
        self.first = self.length - keep

    def clear(self) -> None:
        """Forget every position; the buffers stay."""
        self.first = self.length = 0

    def copy(self, other: LayerCache, length: int) -> None:
        """Hold what `other` does, at least its first `length` positions."""
        self.first, self.length = other.first, other.length
        rows = other.length if other._window is not None else length
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[:, : rows - other.first] = theirs[:, : rows - other.first]

    def can_rewind(self, length: int) -> bool:
        """Whether every key that a query at `length` sees is still held."""
        return self.first == 0 or (self._window is not None and self.first <= length - self._window + 1)


class Cache:
    """All layers' caches, for one text of at most `capacity` tokens fed at most `chunk` at a time."""

    def __init__(
        self, spec: ModelSpec, capacity: int, chunk: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.capacity = capacity
        self.chunk = chunk
        device = device or torch.device("cpu")
        self.layers = [
            LayerCache(layer.attention, cache_rows(layer.attention, capacity, chunk), dtype, device)
            for layer in spec.layers
        ]
        for layer, cache in zip(spec.layers, self.layers, strict=True):
            if layer.cross is not None:
                cache.cross = LayerCache(layer.cross, capacity, dtype, device)

    @property
    def length(self) -> int:
        """Positions that every layer has seen."""
        return min(layer.length for layer in self.layers)

    def rewind(self, length: int) -> int:
        """Forget all after `length` tokens; returns the length really kept (0 where a window has moved on)."""
        if not all(layer.can_rewind(length) for layer in self.layers):
            length = 0
        for layer in self.layers:
            layer.length = length
            if length == 0:
                layer.first = 0
        return length

    def copy(self, other: Cache, length: int) -> int:
        """Hold the first `length` tokens of `other`, made for the same model; returns the length really kept, as above.

        Nothing is copied of what an encoder read.
        """
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.copy(theirs, length)
        return self.rewind(length)

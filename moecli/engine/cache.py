"""The KV cache: preallocated, appended in place, never copied per token."""

from __future__ import annotations

import torch
from torch import Tensor

from moecli.plan import cache_rows
from moecli.spec import Attention, Latent, ModelSpec


class LayerCache:
    """What one layer remembers: keys and values [K, rows, d] each, or latents [1, rows, rank + rope]."""

    def __init__(self, attention: Attention, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        shapes = (
            [(1, attention.cache_width)]
            if isinstance(attention, Latent)
            else [(attention.kv_heads, attention.head_dim)] * 2
        )
        self._window = attention.window
        # Zeroed, not empty: attention reads some rows past the end, at weight 0.
        self._buffers = [torch.zeros(heads, rows, width, dtype=dtype, device=device) for heads, width in shapes]
        self.first = 0  # position of row 0
        self.length = 0  # positions seen

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Add [T, heads, width] tensors; returns the buffers [heads, rows, width], filled up to `length - first`."""
        added, rows = len(new[0]), self._buffers[0].shape[1]
        if self.length - self.first + added > rows:
            self._slide()
        begin = self.length - self.first
        for buffer, rows_added in zip(self._buffers, new, strict=True):
            buffer[:, begin : begin + added] = rows_added.transpose(0, 1)
        self.length += added
        return tuple(self._buffers)

    def _slide(self) -> None:
        """Move the last window - 1 positions, all that coming queries can see, to the front."""
        assert self._window is not None, "a full cache never grows past its capacity"
        keep = min(self._window - 1, self.length - self.first)
        for buffer in self._buffers:
            end = self.length - self.first
            buffer[:, :keep] = buffer[:, end - keep : end].clone()
        self.first = self.length - keep

    def clear(self) -> None:
        """Forget everything."""
        self.first = self.length = 0

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

    @property
    def length(self) -> int:
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

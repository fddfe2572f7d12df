"""What layers remember of a text: the KV cache, preallocated and appended in place, and states of recurrent mixers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moecli.engine.indexer import Choices, choices_of
from moecli.engine.states import RecurrentCache
from moecli.model.spec import MLA, Attention, GroupedQuery, Layer, ModelSpec
from moecli.planning.memory import cache_rows

LATENTS, INDEX_KEYS = range(2)  # the buffers of latent attention


class LayerCache:
    """What one layer remembers: keys [K, rows, d] and values [K, rows, w], or latents [1, rows, rank + rope].

    Beside latents also an indexer's keys [1, rows, d].
    """

    def __init__(self, attention: Attention, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        if isinstance(attention, MLA):
            indexed = attention.index_width > 0
            shapes = [(1, attention.cache_width), (1, attention.index_width)][: 1 + indexed]
            self._names = ("latents", "index_keys")[: 1 + indexed]
        else:
            shapes = [(attention.kv_heads, attention.head_dim), (attention.kv_heads, attention.value_head_dim)]
            self._names = ("keys", "values")
        self._window = attention.window
        self._chunked = isinstance(attention, GroupedQuery) and attention.chunked
        # Zeroed, not empty: attention reads some rows past the end, at weight 0.
        self.buffers = tuple(torch.zeros(heads, rows, width, dtype=dtype, device=device) for heads, width in shapes)
        self.first = 0  # position of row 0
        self.length = 0  # positions seen
        self.cross: LayerCache | None = None  # of the text that an encoder read
        self.choices = Choices()  # of its indexer, or that of the layer whose choice it shares
        self.texts = 0  # that it was emptied of

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The rows in use of each buffer."""
        return tuple(buffer[:, : self.length - self.first] for buffer in self.buffers)

    @property
    def kept_of_a_pass(self) -> int:
        """Tokens that may be read at once so that all of them are held afterwards."""
        rows = self.buffers[0].shape[1]
        return rows if self._window is None else rows - self._window

    @property
    def row_bytes(self) -> int:
        """Bytes of a position."""
        return sum(buffer[:, :1].nbytes for buffer in self.buffers)

    def block(self, start: int, end: int) -> dict[str, Tensor] | None:
        """What it holds of these positions by name, [K, end - start, d]; None where a window has moved on."""
        if start < self.first or end > self.length:
            return None
        rows = slice(start - self.first, end - self.first)
        return {name: buffer[:, rows] for name, buffer in zip(self._names, self.buffers, strict=True)}

    def suits(self, block: Mapping[str, Tensor], tokens: int) -> bool:
        """Whether this is what `block` gives of so many positions of such a cache."""
        wanted = {
            name: ((len(buffer), tokens, buffer.shape[2]), buffer.dtype)
            for name, buffer in zip(self._names, self.buffers, strict=True)
        }
        return {name: (tuple(rows.shape), rows.dtype) for name, rows in block.items()} == wanted

    def put(self, block: Mapping[str, Tensor], tokens: int, chunk: int) -> None:
        """Add a block of so many tokens that suits, `chunk` positions at a time."""
        parts = (block[name].transpose(0, 1).split(chunk) for name in self._names)
        for each in zip(*parts, strict=True):
            self.append(*each)

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

    def fill(self, buffer: int, rows: Tensor) -> None:
        """Write [T, heads, width] to the rows of a buffer that the last T tokens have."""
        end = self.length - self.first
        self.buffers[buffer][:, end - len(rows) : end] = rows.transpose(0, 1)

    def _seen_from(self, position: int) -> int:
        """The first position that a token at this one sees."""
        if self._window is None:
            return 0
        return position // self._window * self._window if self._chunked else position + 1 - self._window

    def skip(self, added: int) -> None:
        """Count tokens of which a layer without a mixer remembers nothing."""
        self._grow(added)

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
        self.texts += 1

    def copy(self, other: MixerCache, length: int) -> None:
        """Hold what `other` does, at least its first `length` positions."""
        assert isinstance(other, LayerCache)
        self.first, self.length = other.first, other.length
        rows = other.length if other._window is not None else length
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[:, : rows - other.first] = theirs[:, : rows - other.first]

    def can_rewind(self, length: int) -> bool:
        """Whether every key that a query at `length` sees is still held."""
        return self.first == 0 or (self._window is not None and self.first <= length - self._window + 1)

    def reach(self, length: int) -> int:
        """How much of the first `length` tokens it can go back to: 0 where a window has moved on."""
        return length if self.can_rewind(length) else 0

    def rewind(self, length: int) -> None:
        """Forget all after `length` tokens, which it can `reach`."""
        self.length = length
        self.choices.clear()
        if length == 0:
            self.first = 0


MixerCache = LayerCache | RecurrentCache


def new_cache(
    layer: Layer, choices: Choices, capacity: int, chunk: int, dtype: torch.dtype, device: torch.device
) -> MixerCache:
    """What one layer remembers of a text of at most `capacity` tokens, fed at most `chunk` at a time.

    `choices`: see `choices_of`.
    """
    if layer.recurrent is not None:
        return RecurrentCache(layer.recurrent, device)
    cache = LayerCache(layer.attention, cache_rows(layer.attention, capacity, chunk), dtype, device)
    if layer.cross is not None:
        cache.cross = LayerCache(layer.cross, capacity, dtype, device)
    cache.choices = choices
    return cache


class Cache:
    """All layers' caches, for one text of at most `capacity` tokens fed at most `chunk` at a time."""

    def __init__(
        self, spec: ModelSpec, capacity: int, chunk: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.capacity = capacity
        self.chunk = chunk
        device = device or torch.device("cpu")
        self.layers = [
            new_cache(layer, choices, capacity, chunk, dtype, device)
            for layer, choices in zip(spec.layers, choices_of(spec.layers), strict=True)
        ]

    @property
    def length(self) -> int:
        """Positions that every layer has seen."""
        return min(layer.length for layer in self.layers)

    def reach(self, length: int) -> int:
        """How much of the first `length` tokens every layer can go back to.

        0 where a window has moved on; what is left of a state is the nearest one that was kept.
        """
        while (reached := min(layer.reach(length) for layer in self.layers)) < length:
            length = reached
        return length

    def rewind(self, length: int) -> int:
        """Forget all after `length` tokens; returns the length really kept, that within `reach`."""
        length = self.reach(length)
        for layer in self.layers:
            layer.rewind(length)
        return length

    def block(self, start: int, end: int) -> list[dict[str, Tensor]] | None:
        """What each layer holds of positions `start` up to `end`, by name; None if one no longer does."""
        found = [layer.block(start, end) for layer in self.layers]
        return [each for each in found if each is not None] if None not in found else None

    def put(self, block: Sequence[Mapping[str, Tensor]], tokens: int) -> bool:
        """Go on with such a block of so many tokens; whether it suits, else nothing is changed."""
        pairs = list(zip(self.layers, block, strict=False))
        fits = len(block) == len(self.layers) and self.length + tokens <= self.capacity
        if not fits or not all(layer.suits(each, tokens) for layer, each in pairs):
            return False
        for layer, each in pairs:
            layer.put(each, tokens, self.chunk)
        return True

    def copy(self, other: Cache, length: int) -> int:
        """Hold the first `length` tokens of `other`, made for the same model; returns the length really kept, as above.

        Nothing is copied of what an encoder read.
        """
        length = other.reach(length)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.copy(theirs, length)
        return self.rewind(length)

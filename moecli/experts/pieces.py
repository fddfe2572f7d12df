"""An expert from the bytes of its record: at once, or piece by piece where it is large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.experts.arena import CPU
from moecli.experts.store import Streamed
from moecli.kernels.choice import Kernel, serves
from moecli.kernels.linear import Biases, Expert, Matrix, as_matrix, inner, linear
from moecli.model.spec import Activation
from moecli.store.expert_record import Piece, Record
from moecli.store.packed import PackedStore

_WHOLE: tuple[Kernel, ...] = "native", "triton"  # a row's product is the same in any company
Pieces = Iterable[tuple[Piece, list[Matrix]]]


@dataclass(frozen=True, slots=True)
class PiecewiseExpert:
    """A large expert: runs of its rows, in order, from memory or as they arrive. All ways give the same bits."""

    record: Record
    pieces: Callable[[], Pieces]
    device: torch.device = CPU

    def __call__(self, x: Tensor, activation: Activation, biases: Biases = ()) -> Tensor:
        """x [T, D] -> [T, D]."""
        hidden: Tensor | None = None  # [T, I]
        out = torch.empty_like(x, dtype=torch.float32)
        for piece, matrices in self.pieces():
            assert piece.rows is not None, "a large expert comes in rows"
            rows = slice(piece.first, piece.first + piece.rows)
            if piece.matrices == ("down",):
                assert hidden is not None, "gate and up come first"
                out[:, rows] = linear(hidden, matrices[0])
                if biases:
                    out[:, rows] += biases[-1][rows]
            else:
                part = inner(x, matrices, activation, tuple(bias[rows] for bias in biases[:-1]))
                if hidden is None:
                    hidden = part.new_empty(len(x), self.record.fields["up"].shape[0])
                hidden[:, rows] = part
        return out


def record_matrices(record: Record, data: Tensor) -> Expert:
    """The matrices of an expert, in place in its record's bytes."""
    return tuple(
        as_matrix(record.dtype, field.shape, data[field.offset : field.offset + field.size])
        for field in record.fields.values()
    )


def as_expert(record: Record, data: Tensor) -> Expert | Streamed:
    """The expert whose record lies whole in `data`, uint8."""
    pieces = record.pieces()
    if len(pieces) == 1 or any(serves(kernel, record.dtype, data.device) for kernel in _WHOLE):
        return record_matrices(record, data)

    def cut() -> Iterator[tuple[Piece, list[Matrix]]]:
        for piece in pieces:
            yield piece, piece_matrices(record, piece, [data[start : start + size] for start, size in piece.spans])

    return PiecewiseExpert(record, cut, data.device)


def piece_matrices(record: Record, piece: Piece, spans: Iterable[Tensor]) -> list[Matrix]:
    """The rows that a piece holds, each matrix in its span of bytes."""
    assert piece.rows is not None, "a whole record has matrices of its own"
    return [
        as_matrix(record.dtype, (piece.rows, record.fields[name].shape[1]), span)
        for name, span in zip(piece.matrices, spans, strict=True)
    ]


def mapped_record(store: PackedStore, layer: int, expert: int) -> Tensor:
    """One record in place in its mapped file: uint8 [stride]."""
    stride = store.record(layer).stride
    stored = store.experts(layer)
    return torch.frombuffer(store.checkpoint.buffer(stored), dtype=torch.uint8, offset=expert * stride, count=stride)

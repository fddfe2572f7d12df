"""Which experts are cut into pieces; a piece whose bytes do not match its matrices is never computed with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moecli.experts.arena import CPU
from moecli.experts.gpu_offloaded import _parts
from moecli.experts.pieces import PiecewiseExpert, as_expert, piece_matrices, record_matrices
from moecli.kernels import choice
from moecli.kernels.linear import expert_outputs, pack
from moecli.model.spec import Activation, FeedForward
from moecli.store import expert_record
from moecli.store.expert_record import Record

WIDTH = 128


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Of an expert that is large for its time."""
    monkeypatch.setattr(expert_record, "PIECE", 2**15)
    return expert_record.expert_record(WIDTH, FeedForward(448, Activation.SILU), "q8")


@pytest.fixture(params=["native", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MOECLI_KERNEL", request.param)
    choice.chosen.cache_clear()
    yield request.param
    choice.chosen.cache_clear()


def test_a_large_expert_is_cut_where_a_product_of_rows_rounds_otherwise(record: Record, kernel: str) -> None:
    small = expert_record.expert_record(WIDTH, FeedForward(32, Activation.SILU), "q8")
    assert (len(small.pieces()), len(record.pieces())) == (1, 2)
    whole, cut = (as_expert(each, torch.zeros(each.size, dtype=torch.uint8)) for each in (small, record))
    assert isinstance(whole, tuple)
    assert isinstance(cut, tuple if kernel == "native" else PiecewiseExpert)


def test_biases_are_added_row_by_row(record: Record, kernel: str) -> None:
    """What an expert in one piece gives: natively to the bit, as torch's products depend on how many rows they have."""
    torch.manual_seed(0)
    data = torch.zeros(record.size, dtype=torch.uint8)
    for field in record.fields.values():
        data[field.offset : field.offset + field.size] = pack("q8", torch.randn(field.shape))
    biases = (torch.randn(448) * 5, torch.randn(448) * 5, torch.randn(WIDTH))
    x, activation = torch.randn(3, WIDTH), Activation.CLAMPED_SWIGLU
    pieces = [(piece, [data[at : at + size] for at, size in piece.spans]) for piece in record.pieces()]
    cut = PiecewiseExpert(record, lambda: [(piece, piece_matrices(record, piece, spans)) for piece, spans in pieces])
    whole = expert_outputs(x, [record_matrices(record, data)], activation, [biases])[0]
    found = cut(x, activation, biases)
    assert torch.equal(found, whole) if kernel == "native" else torch.allclose(found, whole, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(cut(x, activation), whole, atol=0.1)


def test_a_piece_without_all_of_its_bytes_is_none(record: Record) -> None:
    piece = record.pieces()[0]
    spans = [torch.zeros(size, dtype=torch.uint8) for _, size in piece.spans]
    matrices = piece_matrices(record, piece, spans)
    assert len(matrices) == 2
    with pytest.raises(ValueError, match="shorter"):
        piece_matrices(record, piece, spans[:1])
    with pytest.raises(ValueError, match="shorter"):
        list(_parts(record, PiecewiseExpert(record, lambda: [(piece, matrices[:1])], CPU)))

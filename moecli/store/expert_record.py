"""How a model's weights lie in a format: the precision of each dense tensor, and one expert as one record of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moecli.errors import UsageError
from moecli.formats import GROUPED, PLAIN, TILED, bytes_for
from moecli.formats.blocks import block_rows
from moecli.formats.words import formats_of
from moecli.model.spec import FeedForward, Mixture, ModelSpec, Part
from moecli.model.tensors import EXPERT_MATRICES, MIXER_PROJECTIONS, Tensor, expert_shapes

PAGE = 4096  # records start on one: what O_DIRECT and huge pages ask for
PIECE = 16 * 2**20  # an expert larger than this is read and multiplied in rows of about so many bytes
STAGING = 4  # buffers that pieces pass through
_LINE = 64  # matrices start on a cache line
WHOLE = frozenset({"nf4", "int8"})  # scales lie apart from the codes: no run of bytes holds some rows alone

# Quantised models keep these in 16 bits: small, amplified by what follows, or (kv_b) absorbed into other products.
_PRECISE_ROLES = frozenset({"q_a", "kv_a", "kv_b", "index_k", "index_weights", "positions", "encoder_positions"}) | {
    f"experts_{name}_bias" for name in EXPERT_MATRICES
}
_PRECISE_PARTS = frozenset({Part.NORMS, Part.ROUTER, Part.EMBEDDING, Part.MIXER_OTHER, Part.OTHER})


def compute_dtype(dtype: str, stored: str) -> str:
    """What activations and unquantised tensors are in: as dense weights if these are plain, else 16 bits as stored."""
    if (dense := formats_of(dtype).dense) in PLAIN:
        return dense
    return "fp16" if stored == "fp16" else "bf16"


def check_dense(spec: ModelSpec, dtype: str) -> None:
    """UsageError where `dtype` names a format for dense weights apart from experts and there are none."""
    if formats_of(dtype).mixed and not spec.mixtures:
        dense = formats_of(dtype).dense
        raise UsageError(f"{spec.family} models of this kind have no experts: all of it is dense", f"--dtype {dense}")


def dense_dtype(tensor: Tensor, dtype: str, compute: str = "bf16") -> str:
    """The format of one dense tensor in a model of format `dtype`: sensitive ones are never quantised.

    A table that is the head too, and the projections of a mixer with a state, are read whole for every token: in q8,
    which loses next to nothing. Beside experts that are kept as they were published, so is the rest: in 16 bits in
    mxfp4's checkpoints, in GGUF on grids that q8 has.
    """
    formats = formats_of(dtype)
    if formats.mixed:
        beside = tensor.part is Part.SHARED_EXPERTS or tensor.role.startswith("parallel_")
        return dense_dtype(tensor, formats.experts if beside else formats.dense, compute)
    if dtype in PLAIN:
        return dtype
    if dtype == "mxfp4":
        return compute
    if dtype in GROUPED:
        return "q8" if len(tensor.shape) == 2 and tensor.part is Part.EMBEDDING else dense_dtype(tensor, "q8", compute)
    if (tensor.tied or tensor.role in MIXER_PROJECTIONS) and dtype in TILED:
        return "q8"
    precise = tensor.role in _PRECISE_ROLES or tensor.part in _PRECISE_PARTS or len(tensor.shape) != 2
    return compute if precise else dtype


@dataclass(frozen=True, slots=True)
class Field:
    """One matrix [out, in] of a record: `size` bytes at `offset`."""

    shape: tuple[int, int]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """One expert's gate, up and down as they lie on disk, in RAM and on a device, one after another."""

    dtype: str
    fields: Mapping[str, Field]
    size: int

    @property
    def stride(self) -> int:
        """From the start of one record to that of the next, in whole pages."""
        return pages(self.size)

    @property
    def whole(self) -> bool:
        """Whether it is read and multiplied in one piece."""
        return self.size <= PIECE or self.dtype in WHOLE

    def pieces(self) -> tuple[Piece, ...]:
        """Gate and up together in runs of rows, then down: one piece if all of it is small.

        They depend on shape and format alone, never on a budget: a product's rounding depends on its shape.
        """
        if self.whole:
            return (Piece(tuple(self.fields), 0, None, ((0, self.size),)),)
        inner = [name for name in self.fields if name != "down"]
        return (*self._cut(inner), *self._cut(["down"]))

    @property
    def largest_piece(self) -> int:
        """Bytes that any piece takes, read in whole pages: in them, the places of its matrices repeat after PAGE."""
        if self.whole:
            return pages(self.size)
        inner = [name for name in self.fields if name != "down"]
        return max(piece.buffer_size for names in (inner, ["down"]) for piece in self._cut(names, PAGE))

    def _cut(self, names: list[str], most: int | None = None) -> Iterator[Piece]:
        """All pieces of some matrices; or the first `most`, and the last."""
        rows, columns = self.fields[names[0]].shape
        block = block_rows(columns)
        step = max(1, PIECE // (len(names) * bytes_for(self.dtype, (block, columns)))) * block
        starts = range(0, rows, step)
        for first in starts if most is None else {*starts[:most], *starts[-1:]}:
            count = min(step, rows - first)
            begin, size = (bytes_for(self.dtype, (n, columns)) for n in (first, count))
            yield Piece(
                tuple(names),
                first,
                count,
                tuple((self.fields[name].offset + begin, size) for name in names),
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `first` to `first + rows` of some matrices of a record (all of it: rows is None), and where they lie."""

    matrices: tuple[str, ...]
    first: int
    rows: int | None
    spans: tuple[tuple[int, int], ...]  # offset in the record and size, one per matrix; of the record if whole

    @property
    def buffer_size(self) -> int:
        """What reading it in whole pages takes."""
        return sum(pages(offset % PAGE + size) for offset, size in self.spans)


def pages(size: int) -> int:
    """Rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def expert_record(width: int, expert: FeedForward, dtype: str) -> Record:
    """The record of an expert that reads and writes `width` numbers, all of it in `dtype`."""
    fields: dict[str, Field] = {}
    end = 0
    for matrix, shape in expert_shapes(width, expert).items():
        start = -(-end // _LINE) * _LINE
        fields[matrix] = Field(shape, start, bytes_for(dtype, shape))
        end = start + fields[matrix].size
    return Record(dtype, fields, end)


def layer_records(spec: ModelSpec, dtype: str) -> dict[int, Record]:
    """The record of every layer of mixtures."""
    return {layer: mixture_record(spec, mixture, dtype) for layer, mixture in spec.mixtures}


def mixture_record(spec: ModelSpec, mixture: Mixture, dtype: str) -> Record:
    width = mixture.latent_width or spec.hidden_size
    return expert_record(width, mixture.expert, formats_of(dtype).experts)


def staging_size(record: Record) -> int:
    """One staging buffer: room for any piece."""
    return record.largest_piece


def slots_per_layer(spec: ModelSpec, slots: int) -> list[int]:
    """Slots of each layer of mixtures, dealt in turn, so that no layer starves another."""
    experts = [mixture.router.experts for _, mixture in spec.mixtures]
    given = [0] * len(experts)
    slots = min(slots, sum(experts))
    while slots:
        for index, count in enumerate(experts):
            if slots and given[index] < count:
                given[index] += 1
                slots -= 1
    return given

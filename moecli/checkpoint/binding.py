"""Which stored bytes make up each tensor of a spec: a layout bound to a checkpoint, names and shapes checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from moecli.checkpoint.encodings.interleaved import half_of
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError
from moecli.formats import GROUPED, stored_as
from moecli.model.families import Family, Layout, NamedSlice
from moecli.model.spec import Mixture, ModelSpec
from moecli.model.tensors import Tensor, dense_tensors, expert_shapes

_NEARER_TO_Q8 = 5.6  # bits per weight: those of Q5_K_M are, of 5-bit numbers alone are not
FLOATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def nearest_format(bits: float) -> str | None:
    """The format of this program with about so many bits per weight; None for plain numbers."""
    return "q4" if bits < _NEARER_TO_Q8 else "q8" if bits < 12 else None


def format_of(stored: StoredTensor) -> str:
    """The plain format that a tensor is read in: as it is stored, or is decoded to."""
    return stored.encoding.format if stored.encoding else FLOATS[stored.dtype]


@dataclass(frozen=True, slots=True)
class Slice:
    """One matrix as it lies: `size` bytes at `offset` of a file. `shape` is as stored."""

    stored: StoredTensor
    offset: int  # within the stored tensor
    size: int
    shape: tuple[int, ...]
    transposed: bool  # stored [in, out]
    columns: tuple[int, int] | None = None  # first and last of those that are the matrix, where another lies beside it

    @classmethod
    def whole(cls, stored: StoredTensor, transposed: bool = False) -> Slice:
        """All of a tensor; `transposed`: the matrix is the transpose of what the tensor is."""
        shape = stored.shape[::-1] if stored.transposed else stored.shape
        return cls(stored, 0, stored.size, shape, transposed != stored.transposed)

    @classmethod
    def of_rows(cls, stored: StoredTensor, first: int, count: int) -> Slice:
        """Some rows of a matrix."""
        if stored.transposed:
            return cls(stored, 0, stored.size, stored.shape[::-1], True, (first, first + count))
        row = stored.size // stored.shape[0]
        return cls(stored, first * row, count * row, (count, *stored.shape[1:]), False)

    @property
    def first_row(self) -> int:
        """How many rows of the stored tensor, or of its transpose, lie before this matrix."""
        rows = math.prod(self.stored.shape) // max(self.shape[-1], 1) if self.shape else 1
        return self.offset * rows // self.stored.size if self.stored.size else 0

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """[out, in] of a matrix, [n] of a vector."""
        if not self.transposed:
            return self.shape
        first, last = self.columns or (0, self.shape[-1])
        return (last - first, *self.shape[-2::-1])


# What training puts beside a language model and generation never asks: value, reward and classification heads.
HEADS = r"(?!lm_head)(\w*_heads?|score|classifier|qa_outputs|regression_layer|critic|summary)\..+"
BUFFERS = r".*\.(inv_freq|masked_bias|cos_cached|sin_cached)"  # computed anew from the configuration


class Weights:
    """Every tensor of a model, found in its checkpoint. CheckpointError if any is missing, misshapen or unknown.

    `notes` say what of the checkpoint is left out, or read in another way than config.json has it.
    """

    def __init__(self, spec: ModelSpec, family: Family, checkpoint: Checkpoint, notes: tuple[str, ...] = ()) -> None:
        self.spec = spec
        self.checkpoint = checkpoint
        self._family = family
        self._layout = _choose_layout(spec, family, checkpoint)
        heads = self._check()
        further = sum(name.startswith("mtp.") for name in checkpoint.tensors)
        left_out = [f"left out as a head for training: {', '.join(heads)}"] if heads else []
        left_out += [f"{further} tensors that predict further tokens are left out"] if further else []
        self.notes = (*notes, *left_out)

    def with_true_ties(self) -> Weights:
        """The same model, its output head one of its own where the checkpoint holds another than the input table.

        Reads both tables, where there are both. transformers, too, believes the weights here and not config.json.
        """
        for copy in self._layout.copies:
            (table,) = self._stored("embedding")
            if copy in self.checkpoint and not self._same(self.checkpoint[copy], table):
                raise CheckpointError(f"{copy} is not {table.name}, of which {self.spec.family} makes a copy")
        names = self._layout.dense.get("lm_head", ())
        if not self.spec.tied_embeddings or len(names) != 1 or names[0] not in self.checkpoint:
            return self
        head, (table,) = self.checkpoint[names[0]], self._stored("embedding")
        if self._same(head, table):
            return self
        note = f"{head.name} is not the input table, to which config.json ties it: it is used as it is stored"
        return Weights(replace(self.spec, tied_embeddings=False), self._family, self.checkpoint, (*self.notes, note))

    def _same(self, one: StoredTensor, other: StoredTensor) -> bool:
        return one is other or self.checkpoint.same_bytes(one, other)

    @cached_property
    def dtype(self) -> str:
        """The format that most bytes are in: fp32, bf16 or fp16. What is decoded counts for that of config.json."""
        sizes = dict.fromkeys(FLOATS.values(), 0)
        decoded = stored_as(self.spec.stored_dtype)
        for tensor in self.checkpoint.tensors.values():
            if tensor.encoding or tensor.dtype in FLOATS:
                format_ = decoded if tensor.encoding else FLOATS[tensor.dtype]
                sizes[format_] += math.prod(tensor.shape) * (4 if format_ == "fp32" else 2)
        return max(sizes, key=sizes.__getitem__)

    @cached_property
    def packed_dtype(self) -> str:
        """What it is packed to where nobody names a format: as stored, or as many bits as most weights have."""
        if self.kept_dtype is not None:
            return self.kept_dtype
        encoded = [tensor for tensor in self.checkpoint.tensors.values() if tensor.encoding]
        numbers = sum(math.prod(tensor.shape) for tensor in encoded)
        if 2 * numbers < sum(math.prod(tensor.shape) for tensor in self.checkpoint.tensors.values()):
            return self.dtype
        bits = 8 * sum(part.size for tensor in encoded for part in tensor.parts) / max(numbers, 1)
        return nearest_format(bits) or self.dtype

    @cached_property
    def kept_dtype(self) -> str | None:
        """The quantised format that holds every routed expert as it is published; None where none does."""
        names = {stored.encoding.name.lower() if stored.encoding else "" for stored in self.expert_tensors()}
        found = names.pop() if len(names) == 1 else ""
        return found if found in GROUPED else None

    @property
    def is_encoded(self) -> bool:
        """Whether any of it is decoded as it is read."""
        return any(tensor.encoding for tensor in self.checkpoint.tensors.values())

    def dense(self, tensor: Tensor) -> list[StoredTensor]:
        """The stored tensors that, stacked by rows, are `tensor`."""
        return self._stored(tensor.role, tensor.layer)

    def rows(self, tensor: Tensor) -> list[Slice]:
        """The runs of rows of stored tensors that, one after another, are `tensor`."""
        layout, _ = self._layout_of(tensor.layer)
        parts, found = self.dense(tensor), list[Slice]()
        names = layout.dense.get(tensor.role, ("",) * len(parts))  # biases of experts have no name here
        for name, stored in zip(names, parts, strict=True):
            turns = layout.interleaved.get(name)
            if turns is None or tensor.layer is None:
                found.append(Slice.whole(stored))
            else:
                found += _turns(stored, turns.rows(self.spec.blocks[tensor.layer]), turns.roles, tensor.role)
        return found

    def _stored(self, role: str, layer: int | None = None) -> list[StoredTensor]:
        layout, number = self._layout_of(layer)
        if layout.biases is not None and (match := re.fullmatch(r"experts_(\w+)_bias", role)):
            named: NamedSlice = getattr(layout.biases, match[1])
            return [self._stacked(named, named.name.format(layer=number))]
        names = layout.dense[role]
        if (
            role == "embedding" and names[0] not in self.checkpoint
        ):  # savers keep one of several tied names, any of them
            others = (*layout.copies, *(layout.dense.get("lm_head", ()) if self.spec.tied_embeddings else ()))
            names = next(((name,) for name in others if name in self.checkpoint), names)
        return [self.checkpoint[name.format(layer=number)] for name in names]

    def _layout_of(self, layer: int | None) -> tuple[Layout, int | None]:
        """Where a layer's names are, and its number in them."""
        return _in_stack(self.spec, self._layout, layer)

    def expert(self, layer: int, expert: int, matrix: str) -> Slice:
        """Where one matrix ("gate", "up" or "down") of one expert lies."""
        layout, number = self._layout_of(layer)
        assert layout.experts is not None, "a dense model has no routed experts"
        named: NamedSlice = getattr(layout.experts, matrix)
        stored = self._stacked(named, named.name.format(layer=number, expert=expert))
        if not named.stacked:
            return Slice.whole(stored, named.transposed)
        if stored.transposed:
            raise CheckpointError(f"{stored.name} is a stack of experts stored by columns, which is not supported")
        experts = self._experts_of(layer)
        rows, columns = _stack_shape(stored, experts)
        size, offset = stored.size // experts, expert * (stored.size // experts)
        if named.interleaved:
            return Slice(stored, offset, size // 2, (rows, columns), named.transposed)
        if named.half is not None and named.transposed:
            half = columns // 2
            where = named.half * half, (named.half + 1) * half
            return Slice(stored, offset, size, (rows, columns), True, where)
        if named.half is not None:
            if rows % 2:
                raise CheckpointError(f"{stored.name} is {list(stored.shape)}: an odd number of rows for gate and up")
            size, rows = size // 2, rows // 2
            offset += named.half * size
        return Slice(stored, offset, size, (rows, columns), named.transposed)

    def _stacked(self, named: NamedSlice, name: str) -> StoredTensor:
        """A tensor of experts; where gate and up take turns in it, the one that is meant."""
        stored = self.checkpoint[name]
        if not named.interleaved or named.half is None:
            return stored
        if stored.shape[-1:] and stored.shape[-1] % 2:
            raise CheckpointError(f"{stored.name} is {list(stored.shape)}: an odd number of outputs for gate and up")
        return half_of(stored, named.half)

    def expert_matrices(self, layer: int) -> tuple[str, ...]:
        """What an expert of this layer consists of: "gate", "up" and "down", or the last two."""
        return tuple(expert_shapes(self.spec.hidden_size, dict(self.spec.mixtures)[layer].expert))

    def expert_tensors(self) -> list[StoredTensor]:
        """Every stored tensor that holds routed experts."""
        found = (self.expert(layer, expert, matrix).stored for layer, expert, matrix, _ in self._expert_matrices())
        return list(dict.fromkeys(found))

    def experts_are(self, dtype: str) -> bool:
        """Whether every routed expert is stored in this format."""
        tensors = self.expert_tensors()
        return all(stored.encoding is None and FLOATS.get(stored.dtype) == dtype for stored in tensors)

    def experts_are_rows(self) -> bool:
        """Whether each row of an expert's matrices [out, in] is stored whole, one behind the other."""
        parts = (self.expert(layer, expert, name) for layer, expert, name, _ in self._expert_matrices() if expert == 0)
        return not any(part.transposed or part.columns for part in parts)

    def _experts_of(self, layer: int) -> int:
        mixtures = dict(self.spec.mixtures)
        return mixtures[layer].router.experts

    def _check(self) -> list[str]:
        """The heads for training that are there."""
        used: set[str] = set()
        for tensor in dense_tensors(self.spec):
            used.update(part.name for part in self.dense(tensor))
            _check_dense(tensor, self.rows(tensor))
        for layer, expert, matrix, shape in self._expert_matrices():
            found = self.expert(layer, expert, matrix)
            used.add(found.stored.name)
            _check_expert(found, shape)
        here = self.checkpoint.tensors.items()  # a name here may be another than the file's own, which is in `used`
        rest = sorted(name for name, stored in here if stored.name not in used and not self._is_ignored(name))
        heads = [name for name in rest if re.fullmatch(HEADS, name)]
        if unknown := [name for name in rest if name not in heads]:
            raise CheckpointError(
                f"the checkpoint holds '{unknown[0]}', which {self.spec.family} does not know"
                + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""),
                "config.json and the weights belong to different models, or the format is not supported",
            )
        return heads

    def _expert_matrices(self) -> Iterator[tuple[int, int, str, tuple[int, int]]]:
        for layer, mixture in self.spec.mixtures:
            shapes = expert_shapes(self.spec.hidden_size, mixture.expert)
            for expert in range(mixture.router.experts):
                for matrix, shape in shapes.items():
                    yield layer, expert, matrix, shape

    def _is_ignored(self, name: str) -> bool:
        if name in self._layout.copies or (self.spec.tied_embeddings and name in self._layout.dense.get("lm_head", ())):
            return True
        if match := re.match(r"(?:model\.layers|blk)\.(\d+)\.", name):
            real = len(self.spec.layers)
            if real <= int(match[1]) < real + self.spec.extra_layers:
                return True
        return any(re.fullmatch(pattern, name) for pattern in (BUFFERS, *self._layout.ignored))


def _choose_layout(spec: ModelSpec, family: Family, checkpoint: Checkpoint) -> Layout:
    """The first layout whose router and expert names are there, and whose first expert has its shape."""
    if not spec.mixtures:
        fitting = (each for each in family.layouts if each.dense["embedding"][0] in checkpoint)
        return next(fitting, family.layouts[0])
    layer, mixture = spec.mixtures[0]
    found: list[Layout] = []
    for layout in family.layouts:
        stack, number = _in_stack(spec, layout, layer)
        assert stack.experts is not None, "a family of mixtures says where their experts lie"
        names = (*stack.dense["router"], stack.experts.up.name, stack.experts.down.name)
        if all(name.format(layer=number, expert=0) in checkpoint for name in names):
            found.append(layout)

    plain = next((number for number, each in enumerate(spec.layers) if not isinstance(each.ffn, Mixture)), 0)

    def missing(layout: Layout) -> int:
        """Where only norms, the head or a layer without experts are called otherwise."""
        names = (name for role in ("final_norm", "lm_head", "gate_up") for name in layout.dense.get(role, ()))
        return sum(name.format(layer=plain) not in checkpoint for name in names)

    found.sort(key=missing)
    fitting = (each for each in found if _fits(each, spec, checkpoint, layer, mixture))
    if found:
        return next(fitting, found[0])
    raise CheckpointError(
        f"the checkpoint holds no expert under a name that {spec.family} uses",
        "it may be quantised in a format that is not supported, or belong to another model",
    )


def input_widths(spec: ModelSpec, family: Family) -> dict[str, int]:
    """How many columns each matrix of a model has, by every name that it may be stored under alone."""
    found: dict[str, int] = {}
    for layout in family.layouts:
        for tensor in dense_tensors(spec):
            stack, number = _in_stack(spec, layout, tensor.layer)
            if len(tensor.shape) == 2:
                names = stack.dense.get(tensor.role, ())
                found |= {name.format(layer=number): tensor.shape[1] for name in names}
        for layer, mixture in spec.mixtures:
            stack, number = _in_stack(spec, layout, layer)
            for matrix, (_, columns) in expert_shapes(spec.hidden_size, mixture.expert).items():
                named: NamedSlice | None = getattr(stack.experts, matrix)
                if named is not None and not named.stacked:
                    names = tuple(named.name.format(layer=number, expert=n) for n in range(mixture.router.experts))
                    found |= dict.fromkeys(names, columns)
    return found


def _in_stack(spec: ModelSpec, layout: Layout, layer: int | None) -> tuple[Layout, int | None]:
    """The layout of the encoder for its layers, and what a layer's number is in the names of its stack."""
    if layer is None or not spec.encoder:
        return layout, layer
    depth = len(spec.encoder)
    assert layout.encoder is not None, "a family with an encoder says how its layers are called"
    return (layout.encoder, layer) if layer < depth else (layout, layer - depth)


def _fits(layout: Layout, spec: ModelSpec, checkpoint: Checkpoint, layer: int, mixture: Mixture) -> bool:
    layout, number = _in_stack(spec, layout, layer)
    assert layout.experts is not None
    named = layout.experts.down
    shape = expert_shapes(spec.hidden_size, mixture.expert)["down"]
    stored = checkpoint[named.name.format(layer=number, expert=0)]
    rows, columns = (0, 0, *stored.shape)[-2:]
    return (columns, rows) == shape if named.transposed else columns == shape[1]


def _turns(stored: StoredTensor, rows: tuple[int, ...], roles: tuple[str, ...], role: str) -> list[Slice]:
    """The rows that belong to `role`, matrix by matrix, of a tensor in which several take turns."""
    height, turn = (stored.shape[0] if stored.shape else 0), sum(rows)
    if height % turn:
        raise CheckpointError(f"{stored.name} is {list(stored.shape)}: its rows do not take turns of {turn}")
    starts = list(accumulate(rows, initial=0))
    return [
        Slice.of_rows(stored, first + start, count)
        for start, count, owner in zip(starts, rows, roles, strict=False)
        if owner == role
        for first in range(0, height, turn)
    ]


def _check_dense(tensor: Tensor, parts: list[Slice]) -> None:
    rows, *rest = tensor.shape
    where = tensor.role if tensor.layer is None else f"{tensor.role} of layer {tensor.layer}"
    shapes = [part.matrix_shape for part in parts]
    for part in parts:
        _check_float(part.stored)
    # A vector may be stored as [1, n] or [1, 1, n, 1]; a matrix may not change its columns.
    found = sum((shape[0] if rest and shape else max(shape, default=0)) for shape in shapes)
    same_columns = all(list(shape[1:]) == rest or (not rest and math.prod(shape) == rows in shape) for shape in shapes)
    if found != rows or not same_columns:
        held = " + ".join(str(list(shape)) for shape in shapes[:4]) + (" + ..." if len(shapes) > 4 else "")
        raise CheckpointError(f"{parts[0].stored.name}: {where} must be {list(tensor.shape)} but the file has {held}")


def _stack_shape(stored: StoredTensor, experts: int) -> tuple[int, int]:
    """Rows and columns of one of the matrices stacked in [E, rows, columns] or [E * rows, columns]."""
    match stored.shape:
        case (count, rows, columns) if count == experts:
            return rows, columns
        case (count, columns) if count % experts == 0:
            return count // experts, columns
    raise CheckpointError(f"{stored.name} is {list(stored.shape)}, which is not a stack of {experts} experts")


def _check_expert(found: Slice, shape: tuple[int, int]) -> None:
    _check_float(found.stored)
    if found.matrix_shape != shape:
        raise CheckpointError(
            f"{found.stored.name} is {list(found.stored.shape)}, which does not hold experts of {list(shape)}"
        )


def _check_float(stored: StoredTensor) -> None:
    if stored.dtype not in FLOATS and not stored.encoding:
        raise CheckpointError(
            f"{stored.name} is stored as {stored.dtype}, and nothing beside it says how that is decoded",
            "use a revision of the model in F32, BF16 or F16",
        )

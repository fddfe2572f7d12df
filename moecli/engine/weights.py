"""Dense weights for the forward pass: read once into memory, by role, in the format that the plan gave each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli import formats
from moecli.checkpoint.binding import Slice, Weights, format_of
from moecli.checkpoint.reading import read_into, read_rows
from moecli.experts.arena import CPU
from moecli.formats import q8, tiles
from moecli.formats.plain import torch_dtype
from moecli.kernels.linear import Matrix, Packed, as_matrix, pack
from moecli.model import tensors
from moecli.model.spec import ModelSpec, Part
from moecli.store.expert_record import dense_dtype
from moecli.store.packed import PackedStore
from moecli.store.progress import Progress, silent

Load = Callable[[tensors.Tensor], Matrix]
Rows = Callable[[Tensor], Tensor]  # ids [T] -> [T, D]


class LayerWeights:
    """One layer's weights by role: most are tensors, `[role]`; large matrices may be packed, `matrix(role)`."""

    def __init__(self, matrices: Mapping[str, Matrix]) -> None:
        self._matrices = matrices

    def __contains__(self, role: str) -> bool:
        return role in self._matrices

    def __getitem__(self, role: str) -> Tensor:
        found = self._matrices[role]
        assert isinstance(found, Tensor), f"{role} is packed"
        return found

    def get(self, role: str) -> Tensor | None:
        """The tensor of this role; None where the model has none."""
        return None if role not in self._matrices else self[role]

    def matrices(self) -> Iterable[Matrix]:
        """All that are multiplied with: two-dimensional, and no norms or biases."""
        return [each for each in self._matrices.values() if len(each.shape) == 2]

    def matrix(self, role: str) -> Matrix:
        """The matrix of this role as `kernels.linear.linear` takes it, plain or packed."""
        return self._matrices[role]


class DenseWeights:
    """Every tensor but the routed experts, on `device`: `outside` the blocks and per layer.

    Activations are in `compute`. With `rows` the input table stays where they are read. `progress` is told numbers
    read, of how many.
    """

    def __init__(
        self, spec: ModelSpec, compute: str, load: Load, device: torch.device, progress: Progress,
        rows: Rows | None = None,
    ) -> None:  # fmt: skip
        self.dtype, self.device = torch_dtype(compute), device
        self._rows = rows
        by_layer: dict[int | None, dict[str, Matrix]] = defaultdict(dict)
        wanted = [each for each in tensors.dense_tensors(spec) if rows is None or each.part is not Part.EMBEDDING]
        done, total = 0, sum(math.prod(tensor.shape) for tensor in wanted)
        for tensor in wanted:
            by_layer[tensor.layer][tensor.role] = load(tensor).to(device)
            progress(done := done + math.prod(tensor.shape), total)
        self.outside = LayerWeights(by_layer[None])
        self.layers = [LayerWeights(by_layer[index]) for index in range(len(spec.blocks))]

    @property
    def has_table(self) -> bool:
        """Whether the input table is in memory."""
        return self._rows is None

    def embed(self, ids: Tensor) -> Tensor:
        """ids [T] -> rows of the input table [T, D]."""
        if self._rows is not None:
            return self._rows(ids)
        table = self.outside.matrix("embedding")
        if isinstance(table, Packed):
            return q8.gather(table.data, table.shape, ids, self.dtype)
        return F.embedding(ids, table)


def checkpoint_weights(
    weights: Weights,
    dtype: str,
    compute: str,
    device: torch.device = CPU,
    progress: Progress = silent,
    table_on_disk: bool = False,
) -> DenseWeights:
    """The dense weights of a checkpoint; the large matrices are packed where `dtype` is quantised.

    `table_on_disk`: but the input table.
    """
    (table,) = (each for each in tensors.dense_tensors(weights.spec) if each.part is Part.EMBEDDING and not each.layer)

    def rows(ids: Tensor) -> Tensor:
        (stored,) = weights.dense(table)
        found = torch.empty(len(ids), table.shape[1], dtype=torch_dtype(compute))
        for row, token in zip(found, ids.tolist(), strict=True):
            read_rows(row.unsqueeze(0), weights.checkpoint, Slice.whole(stored), token)
        return found.to(device)

    def load(tensor: tensors.Tensor) -> Matrix:
        wanted = dense_dtype(tensor, dtype, compute)
        if wanted in formats.PLAIN:
            return _read(weights, tensor, _precision(tensor.role, wanted))
        rows, columns = tensor.shape
        parts = {format_of(part) for part in weights.dense(tensor)}
        stored = parts.pop() if len(parts) == 1 else "fp32"
        return as_matrix(wanted, (rows, columns), pack(wanted, _read(weights, tensor, torch_dtype(stored))))

    return DenseWeights(weights.spec, compute, load, device, progress, rows if table_on_disk else None)


def store_weights(
    store: PackedStore, device: torch.device = CPU, table_on_disk: bool = False, progress: Progress = silent
) -> DenseWeights:
    """The dense weights of a packed store, in the formats they have there; `table_on_disk`: but the input table."""
    tables = [each for each in tensors.dense_tensors(store.spec) if each.part is Part.EMBEDDING]

    def rows(ids: Tensor) -> Tensor:
        ((stored, dtype),) = map(store.dense, tables)
        found = torch.empty(len(ids), store.spec.hidden_size, dtype=torch_dtype(store.compute))
        for row, token in zip(found, ids.tolist(), strict=True):
            if dtype == "q8":
                strip = torch.empty(formats.bytes_for(dtype, (tiles.ROWS, row.numel())), dtype=torch.uint8)
                store.checkpoint.read_into(strip.numpy().data, stored, token // tiles.ROWS * len(strip))
                place = torch.tensor([token % tiles.ROWS])
                row.copy_(q8.gather(strip, (tiles.ROWS, row.numel()), place, found.dtype)[0])
            else:
                read_into(row, store.checkpoint, stored, token * stored.size // stored.shape[0])
        return found.to(device)

    def load(tensor: tensors.Tensor) -> Matrix:
        stored, dtype = store.dense(tensor)
        if dtype in formats.PLAIN:
            plain = torch.empty(tensor.shape, dtype=_precision(tensor.role, dtype))
            read_into(plain, store.checkpoint, stored)
            return plain.to(_precision(tensor.role, store.compute))
        rows, columns = tensor.shape
        data = torch.empty(stored.size, dtype=torch.uint8)
        store.checkpoint.read_into(data.numpy().data, stored)
        return as_matrix(dtype, (rows, columns), data)

    return DenseWeights(store.spec, store.compute, load, device, progress, rows if table_on_disk else None)


def _precision(role: str, dtype: str) -> torch.dtype:
    return torch.float32 if role in tensors.FLOAT32 else torch_dtype(dtype)


def _read(weights: Weights, tensor: tensors.Tensor, dtype: torch.dtype) -> Tensor:
    loaded = torch.empty(tensor.shape, dtype=dtype)
    start = 0
    for part in weights.rows(tensor):
        rows = math.prod(part.matrix_shape) // math.prod(tensor.shape[1:])
        read_rows(loaded[start : start + rows], weights.checkpoint, part)
        start += rows
    return loaded

"""Grok-1 as xAI released it: ckpt-0/tensor00000_000 and on, each the pickle of one leaf of the tree of parameters.

A leaf is a numpy array, or int8 weights with scales in a QuantizedWeight8bit: each number times the scale of its output
and, where there are several rows of scales, of its share of the inputs. Files are numbered in the order of the sorted
tree, so layers come as their names sort: 0, 1, 10, 11, ... Matrices are [in, out].
Source: checkpoint.py and model.py of xai-org/grok-1.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from moecli.checkpoint.encodings.scaled_int8 import ScaledInt8
from moecli.checkpoint.pickles import Call, Global, Payload, read_pickle, refused
from moecli.checkpoint.stored import ITEM_SIZES, Source, StoredTensor, damaged, local_source
from moecli.errors import CheckpointError

_LOG = logging.getLogger(__name__)
_QUANTISED = "__main__.QuantizedWeight8bit"
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_ALLOWED = frozenset({_QUANTISED, *_ARRAYS, "numpy.ndarray", "numpy.dtype", "ml_dtypes.bfloat16"})
_DTYPES = {"i1": "I8", "f4": "F32", "f2": "F16", "ml_dtypes.bfloat16": "BF16"}
CHUNK = 2**12  # bytes read at once: what describes a leaf is shorter, and from the Hub each costs
_NUMBER = re.compile(r"tensor([0-9]{5})")
_OUTSIDE = ("language_model/in_out_embed/embeddings", "language_model/rms_norm/scale")
_LAYER = (
    "moe/linear/w", "moe/linear_1/w", "moe/linear_v/w", "multi_head_attention/key/w", "multi_head_attention/linear/w",
    "multi_head_attention/query/w", "multi_head_attention/value/w", "rms_norm/scale", "rms_norm_1/scale",
    "rms_norm_2/scale", "rms_norm_3/scale", "router/w",
)  # fmt: skip


def read_header(path: Path, name: str) -> dict[str, StoredTensor]:
    """The one tensor of a file, called by its number; `name` is that of the file. Bytes are only located."""
    with local_source(path) as (source, size):
        return _header(source, path, name, size)


def remote_header(source: Source, name: str, size: int) -> dict[str, StoredTensor]:
    """The same of a file that is not here."""
    return _header(source, Path(name), name, size)


def with_tree_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """All tensors of the release by their place in the tree; those of other checkpoints as they are.

    Only the keys change: each tensor keeps the name that its file knows.
    """
    if not all(map(_NUMBER.fullmatch, tensors)) or not tensors:
        return dict(tensors)
    layers, rest = divmod(len(tensors) - len(_OUTSIDE), len(_LAYER))
    if rest or sorted(tensors)[-1] != f"tensor{len(tensors) - 1:05}":
        raise CheckpointError(f"the release of {len(tensors)} tensors is not whole", "fetch the model again")
    order = sorted(range(layers), key=str)
    names = [*_OUTSIDE, *(f"transformer/decoder_layer_{layer}/{leaf}" for layer in order for leaf in _LAYER)]
    return dict(zip(names, (tensors[name] for name in sorted(tensors)), strict=True))


def _header(source: Source, path: Path, name: str, size: int) -> dict[str, StoredTensor]:
    called = _NUMBER.search(name)
    assert called is not None, "files are told by their names"
    _LOG.debug("reads the pickle of %s", path)
    value = read_pickle(source, 0, size, _ALLOWED, path.name, CHUNK)
    return {called[0]: _Reader(path, called[0]).tensor(value)}


class _Reader:
    """Makes the tensor of one file from the calls that would have made it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def tensor(self, value: Any) -> StoredTensor:
        match value:
            case Call(name=name, args=(), state={"weight": weight, "scales": scales, **more}) if not more:
                if name != _QUANTISED:
                    self._refuse()
                return self._scaled(weight, scales)
        found = self._array(value, self._name)
        if len(found.shape) == 2 and self._name != "tensor00000":  # a table has its words in rows
            return self._turned(found)
        return found

    def _scaled(self, weight: Any, scales: Any) -> StoredTensor:
        """[.., in, out] in int8 and [.., groups, out]."""
        found, beside = self._array(weight, self._name), self._array(scales, f"{self._name}.scales")
        fits = len(found.shape) == len(beside.shape) in (2, 3) and found.dtype == "I8" and beside.dtype != "I8"
        if not fits or (found.shape[:-2], found.shape[-1]) != (beside.shape[:-2], beside.shape[-1]):
            self._refuse()
        if not beside.shape[-2] or found.shape[-2] % beside.shape[-2]:
            self._refuse()
        whole = replace(found, encoding=ScaledInt8((found, beside), "bf16"))
        return self._turned(whole) if len(whole.shape) == 2 else whole

    def _turned(self, found: StoredTensor) -> StoredTensor:
        """A matrix [in, out] as the matrix [out, in] that it is."""
        return replace(found, shape=found.shape[::-1], transposed=True)

    def _array(self, value: Any, name: str) -> StoredTensor:
        match value:
            case Call(
                name=function,
                args=(Global(name="numpy.ndarray"), (0,), Payload(size=1)),
                state=(1, tuple(shape), dtype_call, False, Payload() as data),
            ) if function in _ARRAYS:
                dtype = self._dtype(dtype_call)
            case _:
                self._refuse()
        if len(shape) > 3 or not all(type(each) is int and 0 <= each < 2**48 for each in shape):
            self._refuse()
        if data.size != math.prod(shape) * ITEM_SIZES[dtype]:
            raise damaged(self._path, f"{name} is not as large as it claims")
        return StoredTensor(name, dtype, shape, self._path, data.offset, data.size)

    def _dtype(self, value: Any) -> str:
        match value:
            case Call(name="numpy.dtype", args=(str(kind) | Global(name=kind), False, True), state=(3, "<" | "|", *_)):
                dtype = _DTYPES.get(kind)
            case _:
                dtype = None
        return dtype or self._refuse()

    def _refuse(self) -> NoReturn:
        raise refused(self._path.name, "it is no array as the release of Grok-1 holds them")

"""The tensors of a quantised checkpoint -> those of the model, each with the encoding that its numbers are read by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moecli.checkpoint.encodings import awq, bitsandbytes, float4, gptq, mlx, pack_quantized, scaled
from moecli.checkpoint.encodings._scheme import Matrix, Read
from moecli.checkpoint.prequantized import packed_matrices
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import CheckpointError

Reader = Callable[[Matrix, Mapping[str, Any], str, Read | None], StoredTensor]
_READERS: Mapping[str, Reader] = {  # by the name of the packing
    "fp8": scaled.read,
    "int8": scaled.read,
    "gptq": gptq.read,
    "awq": awq.read,
    **{f"compressed-tensors {bits}-bit": pack_quantized.read for bits in pack_quantized.BITS},
    **{f"MLX {bits}-bit": mlx.read for bits in mlx.BITS},
    "MLX mxfp4": mlx.read_floats,
    "MLX mxfp8": mlx.read_float8,
    "MLX nvfp4": mlx.read_floats,
    "mxfp4": float4.read_blocks,
    "ModelOpt nvfp4": float4.read_modelopt,
    "compressed-tensors fp4": float4.read_packed,
    bitsandbytes.FOUR_BIT: bitsandbytes.read_4bit,
    "bitsandbytes 8-bit": bitsandbytes.read_8bit,
}


def decoded(
    tensors: Mapping[str, StoredTensor],
    scheme: Mapping[str, Any],
    format: str,
    inputs: Callable[[], Mapping[str, int]],
    read: Read | None = None,
) -> dict[str, StoredTensor]:
    """The same where what is quantised stands under the name of its matrix, whole, and its scales under none.

    `scheme` is the quantization_config of config.json; `format` the plain format that its model is meant for; `inputs`
    tells how many columns its matrices have, by name.
    `read` reads small tensors; None where the files are not here.
    CheckpointError for an encoding that is not read, or whose tensors do not belong together.
    """
    matrices = packed_matrices({name: replace(stored, name=name) for name, stored in tensors.items()}, scheme)
    found = dict(tensors)
    asked = any(each.packing.name == bitsandbytes.FOUR_BIT for each in matrices)
    widths = inputs() if asked else {}  # which takes a while
    for each in matrices:
        reader = _READERS.get(each.packing.name)
        if reader is None:
            raise CheckpointError(
                f"the checkpoint is quantised ({each.packing.name}), which cannot be run yet",
                "use an unquantised bf16 or fp16 revision",
            )
        near = {ending: tensors[stored.name] for ending, stored in each.beside.items()}
        for stored in (each.codes, *each.beside.values()):
            del found[stored.name]
        found[each.name] = reader(
            Matrix(each.name, tensors[each.codes.name], near, widths.get(each.name)), scheme, format, read
        )
    return found

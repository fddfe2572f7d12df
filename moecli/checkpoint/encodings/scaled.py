"""fp8 and int8: 8-bit floats or whole numbers, times the scale of their block, row, group of a row, or of the matrix.

Blocks are 128 x 128 in DeepSeek-V3 and R1, MiniMax-M2 and Qwen3's fp8 releases (`weight_scale_inv`, which multiplies
whatever its name says); rows or whole matrices (`weight_scale`) in those of compressed-tensors and others. The product
is taken in float32 and rounded once, as by transformers and by DeepSeek's own fp8_cast_bf16.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecli.checkpoint import raw
from moecli.checkpoint.encodings._scheme import Matrix, Read, block_size, misfit
from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.formats import plain

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

_USUAL = (128, 128)


@dataclass(frozen=True, slots=True)
class Scaled(Encoding):
    """`parts` are codes [.., out, in] and scales; `block` is rows and columns of a matrix that share a scale."""

    block: tuple[int, int]

    @property
    def name(self) -> str:
        return "int8" if self.parts[0].dtype == "I8" else "fp8"

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        import torch

        codes, scales = self.parts
        height, width = codes.shape[-2:]
        tall, wide = self.block
        row = torch.arange(first, first + count)
        places = row // height * -(-height // tall) + row % height // tall  # in the rows of all matrices' scales
        low, high = int(places[0]), int(places[-1]) + 1
        found = raw.rows(checkpoint, scales, low, high - low, -(-width // wide))
        beside = raw.finite(found, scales)[places - low]
        numbers = raw.rows(checkpoint, codes, first, count).float()
        if width % wide:
            numbers *= beside.repeat_interleave(wide, 1)[:, :width]
        else:
            numbers.view(count, -1, wide).mul_(beside.unsqueeze(2))
        return numbers.to(plain.torch_dtype(self.format))


def read(matrix: Matrix, scheme: Mapping[str, Any], format: str, read: Read | None) -> StoredTensor:
    """One matrix, or a stack of them, with the scales beside it. CheckpointError where they do not belong together."""
    codes, shape = matrix.codes, matrix.codes.shape
    scales = matrix.beside(r".*scale(_inv)?", but=r".*(in|out)put_scale")
    if len(shape) not in (2, 3) or codes.transposed:
        raise misfit(codes, "is neither a matrix nor a stack of them")
    stacked, (height, width), found = shape[:-2], shape[-2:], scales.shape
    blocks = block_size(scheme) or _USUAL
    by = {
        (height, width): ((), (1,), (1, 1)),
        (1, width): ((height,), (height, 1)),
        blocks: ((-(-height // blocks[0]), -(-width // blocks[1])),),
    }
    if len(found) == 2 and not stacked and found[0] == height and 1 < found[1] < width and width % found[1] == 0:
        by[1, width // found[1]] = (found,)  # groups of a row
    for block, grids in by.items():
        if found in [(*stacked, *grid) for grid in grids]:
            return matrix.stored(shape, Scaled((codes, scales), format, block))
    raise misfit(scales, f"does not fit {codes.name} of {list(shape)} in blocks of {list(blocks)}")

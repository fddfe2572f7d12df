"""The unquantised formats as packed bytes: the numbers as they are, rows one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.errors import CheckpointError
from moecli.formats.blocks import check_finite
from moecli.formats.plain import torch_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Unquantised:
    """fp32, bf16 or fp16."""

    name: str

    def pack(self, weights: Tensor) -> Tensor:
        """The bytes of a matrix [out, in], rounded to this format. CheckpointError where that gives no number."""
        import torch

        rounded = weights.detach().to(torch_dtype(self.name)).contiguous()
        if rounded.numel():
            extremes = torch.stack(rounded.aminmax())
            if not bool(extremes.isfinite().all()):
                check_finite(weights)
                raise CheckpointError(f"a weight is larger than {self.name} can hold", "bf16 and fp32 can hold it")
        return rounded.view(-1).view(torch.uint8)

    def unpack(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] again; without a copy where the precision is the same."""
        return self.unpack_rows(packed, shape, dtype, 0, shape[0])

    def unpack_rows(self, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype, first: int, last: int) -> Tensor:
        """Some rows of it."""
        return packed.view(torch_dtype(self.name)).view(shape)[first:last].to(dtype)

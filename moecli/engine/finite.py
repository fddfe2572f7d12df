"""Numbers that are infinite or none: refused where they would choose a token or an expert, traced to a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moecli.errors import CheckpointError

_DAMAGED = "moecli verify tells whether the files are whole; else the weights were published so"
_OVERFLOW = "fp16 ends at 65,504: try --dtype bf16, or fp32"


def is_finite(numbers: Tensor) -> bool:
    """Whether all are, at the cost of one look at each."""
    return not numbers.numel() or all(math.isfinite(float(end)) for end in numbers.aminmax())


def not_finite(where: str, dtype: torch.dtype) -> CheckpointError:
    """What to say of a model whose numbers end `where`, computed in `dtype`."""
    hint = _OVERFLOW if dtype is torch.float16 else _DAMAGED
    return CheckpointError(f"the model computes numbers that are infinite or none: {where}", hint)

"""int8 of the official Grok-1: each number times the scale of its output and of its share of the inputs.

Codes are [.., in, out] and scales [.., groups, out]. The product is rounded to bf16 once, as in xAI's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecli.checkpoint import raw
from moecli.checkpoint.stored import Encoding

if TYPE_CHECKING:
    from torch import Tensor

    from moecli.checkpoint.folder import Checkpoint

NAME = "scaled int8"


@dataclass(frozen=True, slots=True)
class ScaledInt8(Encoding):
    """`parts` are codes and scales."""

    @property
    def name(self) -> str:
        return NAME

    def rows(self, checkpoint: Checkpoint, first: int, count: int) -> Tensor:
        return self.columns(checkpoint, first, count, 0, self.parts[0].shape[-1])

    def columns(self, checkpoint: Checkpoint, top: int, height: int, first: int, count: int) -> Tensor:
        codes, scales = self.parts
        inputs, groups = codes.shape[-2], scales.shape[-2]
        share = inputs // groups  # inputs to a scale
        low, high = top // share, -(-(top + height) // share)
        beside = raw.columns(checkpoint, scales, low, high - low, first, count).float()
        numbers = raw.columns(checkpoint, codes, top, height, first, count).float()
        if top % share or height % share:
            return (numbers * beside.repeat_interleave(share, 0)[top - low * share :][:height]).bfloat16()
        return (numbers.view(-1, share, count) * beside[:, None]).view(height, count).bfloat16()

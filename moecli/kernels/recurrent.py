"""Native mixers with a state: what lies between their two projections, for prompts and in a decode step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moecli.kernels import abi
from moecli.kernels.blocking import STATE_TILE
from moecli.kernels.choice import forced
from moecli.kernels.library import library, loaded
from moecli.kernels.native import NUMBERS
from moecli.model.spec import Recurrent, RecurrentKind

# enum recurrence of c/native.h
KINDS = {
    RecurrentKind.DELTA_NET: 0, RecurrentKind.SHORT_CONVOLUTION: 1, RecurrentKind.MAMBA: 2, RecurrentKind.MAMBA2: 3,
    RecurrentKind.CHANNEL_DELTA: 4, RecurrentKind.LIGHTNING: 5,
}  # fmt: skip
_FLOATS = ("conv_bias", "step_bias", "skip", "norm", "step_norm", "write_norm", "read_norm")
_PLAIN = ("in_bias", "gates", "select", "step", "gate", "out_bias")  # in the type of the hidden state


@dataclass(frozen=True, slots=True)
class Past:
    """What a layer remembers of one text, see RecurrentCache; of the last step's tokens `kept` are the first ones now.

    Unless it `commits`, a step's tokens may be forgotten.
    """

    rows: Tensor
    state: Tensor
    record: Tensor
    kept: int
    commits: bool


def serves(x: Tensor) -> bool:
    """Whether hidden states like x are mixed natively: on the CPU, where nobody forces another kernel."""
    return x.is_cpu and x.dtype in NUMBERS and forced() in (None, "native") and library() is not None


class NativeMixer:
    """A mixer's numbers as native code takes them. `weights`: by role without "mixer_", matrices aside."""

    def __init__(self, spec: Recurrent, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
        assert all(weights[role].dtype is dtype for role in _PLAIN if role in weights)
        floats = {role: weights[role] for role in _FLOATS if role in weights}
        if "conv" in weights:
            floats["conv"] = weights["conv"].squeeze(1).t()  # [kernel, channels]
        if "decay" in weights:
            floats["decay"] = decay_rates(spec, weights["decay"])
        if spec.slope:
            floats["decay"] = slopes(spec)
        plain = {role: weights[role] for role in _PLAIN if role in weights}
        self._held = {
            role: value.contiguous() for role, value in (floats | plain).items()
        }  # as long as their addresses
        self._inner = spec.inner
        self.call = abi.Recurrent(
            sublayer=abi.Sublayer(pool=loaded().thread_pool(), type=NUMBERS[dtype]),
            kind=KINDS[spec.kind],
            heads=spec.heads,
            head_dim=spec.head_dim,
            groups=spec.groups,
            state_dim=spec.state_dim,
            kernel=spec.kernel,
            rank=spec.rank,
            norm_eps=spec.norm_eps,
            floor=spec.floor,
            **{role: value.data_ptr() for role, value in self._held.items()},
        )

    def remember(self, texts: Sequence[Past]) -> None:
        """Say where the next tokens go: as many of each text."""
        self._histories = (abi.History * len(texts))(
            *(
                abi.History(
                    text.rows.data_ptr(), text.state.data_ptr(), text.record.data_ptr(), text.kept, text.commits
                )
                for text in texts
            )
        )
        self.call.histories, self.call.texts = ctypes.addressof(self._histories), len(texts)

    def __call__(self, projected: Tensor, gates: Tensor | None, past: Past) -> Tensor:
        """Tokens of one text, float32 [T, .] as the input projections make them: what the output projection takes.

        [T, inner] in float32. A token's result depends on those before it alone, not on how they were cut.
        """
        self.remember([past])
        mixed = torch.empty(len(projected), self._inner)
        sublayer = self.call.sublayer
        sublayer.pool.threads, sublayer.tokens = torch.get_num_threads(), len(projected)
        self.call.projected, self.call.mixed = projected.data_ptr(), mixed.data_ptr()
        self.call.gated = None if gates is None else gates.data_ptr()
        loaded().call("mix", self.call)
        return mixed


def slopes(spec: Recurrent) -> Tensor:
    """How fast the heads of lightning attention decay, negative: [heads]."""
    return -spec.slope * (2 ** (-8 / spec.heads)) ** torch.arange(1, spec.heads + 1)


def decay_rates(spec: Recurrent, logarithms: Tensor) -> Tensor:
    """How fast a state decays, negative: of each head, of Mamba [tiles, state_dim, STATE_TILE] as the state lies."""
    rates = -logarithms.float().exp()
    if spec.kind is not RecurrentKind.MAMBA:
        return rates
    padded = torch.nn.functional.pad(rates, (0, 0, 0, -len(rates) % STATE_TILE))
    tiles: Tensor = padded.unflatten(0, (-1, STATE_TILE)).transpose(1, 2)
    return tiles

"""Linear layers and experts on plain or packed matrices, by the fastest kernel that serves the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from torch import Tensor

from moecli import formats
from moecli.formats.plain import torch_dtype
from moecli.kernels import bnb, native
from moecli.kernels.blocking import CHUNK, MAX_TOKENS
from moecli.kernels.choice import Kernel, chosen, serves
from moecli.model.spec import Activation


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [out, in] in a quantised format: a flat uint8 tensor of its bytes."""

    dtype: str
    shape: tuple[int, int]
    data: Tensor

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device) -> Packed:
        """The same on another device; itself if it is there."""
        return self if self.device == device else Packed(self.dtype, self.shape, self.data.to(device))


def _triton(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    from moecli.kernels.gpu import products, prompts

    few = len(x) <= MAX_TOKENS
    return products.linear(x, dtype, packed, shape).to(x.dtype) if few else prompts.linear(dtype, x, packed, shape)


_MULTIPLY: dict[Kernel, Callable[[str, Tensor, Tensor, tuple[int, int]], Tensor]] = {
    "triton": _triton,
    "bnb": bnb.linear,
    "torch": formats.matmul,
}
_PLAIN = {torch_dtype(name): name for name in formats.PLAIN}
Matrix = Tensor | Packed
Expert = tuple[Matrix, ...]  # gate [I, D], up [I, D], down [D, I]; without a gate where it has two
Biases = tuple[Tensor, ...]  # of an expert's matrices: [I], [I], [D]
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0  # gpt-oss


def _relu_squared(x: Tensor) -> Tensor:
    return torch.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: _gelu_tanh,
    Activation.RELU: torch.relu,
    Activation.RELU_SQUARED: _relu_squared,
}


CUTS = {Activation.SILU_TO_7: 7.0, Activation.SILU_TO_16: 16.0}


def gated(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """What goes on to down, of what gate and up have made of the same tokens."""
    if activation is Activation.CLAMPED_SWIGLU:  # cut, and up counts from -1 (gpt-oss)
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return gate * (gate * SWIGLU_ALPHA).sigmoid() * (up + 1)
    if (limit := CUTS.get(activation)) is not None:
        return F.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)
    return ACTIVATIONS[activation](gate) * up


class ExpertBiases:
    """What is added to the products of each expert of a layer: tables [E, I] of gate and up, [E, D] of down."""

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.tables = tuple(tables)  # in the order of the matrices
        self._copies = {self.tables[0].device: self.tables}

    def of(self, experts: Iterable[int], device: torch.device) -> list[Biases]:
        """Those of some experts, by their numbers, where they are computed."""
        if device not in self._copies:
            self._copies[device] = tuple(table.to(device) for table in self.tables)
        return [tuple(table[expert] for table in self._copies[device]) for expert in experts]


def as_matrix(dtype: str, shape: tuple[int, int], data: Tensor) -> Matrix:
    """The bytes of a matrix, seen as what `linear` takes; no copy."""
    if dtype in formats.PLAIN:
        return data.view(torch_dtype(dtype)).view(shape)
    return Packed(dtype, shape, data)


def format_of(matrix: Matrix) -> str:
    """The format of a matrix, such as "q4" or "bf16"; "" for numbers that are no format."""
    return matrix.dtype if isinstance(matrix, Packed) else _PLAIN.get(matrix.dtype, "")


def native_bytes(dtype: str, matrices: Iterable[Matrix]) -> list[Tensor] | None:
    """The bytes of matrices where they lie, uint8, for native kernels; None if these do not serve all of them.

    They do where all are on the CPU in that one format and each has its rows after one another.
    """
    found = []
    for matrix in matrices:
        if format_of(matrix) != dtype or not serves("native", dtype, matrix.device):
            return None
        if isinstance(matrix, Packed):
            found.append(matrix.data)
        elif matrix.is_contiguous():
            found.append(matrix.view(-1).view(torch.uint8))
        else:
            return None
    return found


def pack(dtype: str, weights: Tensor) -> Tensor:
    """`formats.pack`, by the native quantiser where there is one: the same bytes, much sooner."""
    quantise = native.pack if dtype in formats.SEARCHED and serves("native", dtype, weights.device) else formats.pack
    return quantise(dtype, weights)


def can_repack(dtype: str) -> bool:
    """Whether blocks that are published in this format need not become numbers."""
    return dtype in formats.GROUPED and serves("native", dtype, torch.device("cpu"))


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [T, in] times a matrix [out, in]: [T, out], in x's precision."""
    dtype = format_of(matrix)
    if data := native_bytes(dtype, [matrix]):
        product = native.linear(dtype, x, data[0], (matrix.shape[0], matrix.shape[1]))
    elif isinstance(matrix, Tensor):
        return F.linear(x.to(matrix.dtype), matrix, bias).to(x.dtype)
    else:
        product = _MULTIPLY[chosen(dtype, x.device.type)](dtype, x, matrix.data, matrix.shape)
    return product if bias is None else product.add_(bias)


def feed_forward(x: Tensor, gate_up: Matrix, down: Matrix, activation: Activation) -> Tensor:
    """down(activation(gate x) * up x) with gate and up stacked by rows, [2I, D]. x [T, D]; returns [T, D]."""
    dtype, width = format_of(gate_up), gate_up.shape[0] // 2
    if native.can_cut(dtype, width) and (data := native_bytes(dtype, [gate_up, down])):
        return native.stacked_feed_forward(dtype, x, data[0], data[1], width, activation).to(x.dtype)
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(gated(activation, gate, up), down)


def inner(x: Tensor, matrices: Sequence[Matrix], activation: Activation, biases: Biases = ()) -> Tensor:
    """activation(gate x) * up x for x [T, D] and rows of gate and up, or activation(up x) for rows of up alone.

    `biases` of the same rows, or none. [T, rows], in x's precision or better.
    """
    *gate, up = matrices
    if data := native_bytes(format_of(up), matrices):
        return native.inner(format_of(up), x, data, up.shape[0], activation, biases)
    made = [linear(x, matrix) for matrix in matrices]
    for product, bias in zip(made, biases, strict=False):
        product.add_(bias)
    return gated(activation, made[0], made[1]) if gate else ACTIVATIONS[activation](made[0])


def expert_outputs(
    x: Tensor, experts: Sequence[Expert], activation: Activation, biases: Sequence[Biases] = ()
) -> Tensor:
    """What each expert makes of all of x [T, D]: [n, T, D], in x's precision or better. `biases` of all or none."""
    up = experts[0][-2]
    if data := native_bytes(format_of(up), chain.from_iterable(experts)):
        each = zip(*(data[place :: len(experts[0])] for place in range(len(experts[0]))), strict=True)
        return native.feed_forward(format_of(up), x, list(each), up.shape[0], activation, biases)
    grouped = not biases and takes_groups(experts[0], activation)
    if grouped and len(x) <= MAX_TOKENS:
        return _few_through_experts(x, experts, activation)
    if grouped:
        every = torch.arange(len(x))
        return torch.stack(grouped_outputs(x, [every] * len(experts), experts, activation))
    rows = _padded(x)
    given = biases or [()] * len(experts)
    outputs = [_expert(rows, *each, activation)[: len(x)] for each in zip(experts, given, strict=True)]
    return outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)


def add_weighted(
    sums: Tensor,
    x: Tensor,
    experts: Sequence[Expert],
    activation: Activation,
    counts: Sequence[int],
    rows: Tensor,
    weights: Tensor,
) -> bool:
    """See `native.add_weighted`, CHUNK rows at once. False, and nothing is done, where native kernels do not serve."""
    up = experts[0][-2]
    data = native_bytes(format_of(up), chain.from_iterable(experts))
    if data is None:
        return False
    each = list(zip(*(data[place :: len(experts[0])] for place in range(len(experts[0]))), strict=True))
    native.add_weighted(sums, format_of(up), x, each, up.shape[0], activation, counts, rows, weights, CHUNK)
    return True


def takes_groups(expert: Expert, activation: Activation) -> bool:
    """Whether `grouped_outputs` takes such experts, if they have no biases."""
    up = expert[-2]
    return isinstance(up, Packed) and activation in ACTIVATIONS and serves("triton", up.dtype, up.device)


def grouped_outputs(
    x: Tensor, tokens: Sequence[Tensor], experts: Sequence[Expert], activation: Activation
) -> list[Tensor]:
    """What each expert makes of its tokens, rows [n] of x [T, D]: float32 [n, D] each, all by one pair of launches."""
    from moecli.kernels.gpu import prompts

    up = experts[0][-2]
    counts = [len(rows) for rows in tokens]
    first = torch.tensor([0, *accumulate(counts)]).to(x.device)
    addresses = torch.tensor([[_data(matrix).data_ptr() for matrix in expert] for expert in experts]).to(x.device)
    made = prompts.expert_outputs(
        format_of(up), x, torch.cat(list(tokens)).to(x.device), first, addresses, up.shape[0], activation
    )
    return list(made.split(counts))


def _few_through_experts(x: Tensor, experts: Sequence[Expert], activation: Activation) -> Tensor:
    """What experts in records of one layout make of a few tokens [T, D]: float32 [n, T, D]."""
    from moecli.kernels.gpu import products
    from moecli.kernels.gpu.norms import Normed

    *gate, up, down = (_data(matrix).data_ptr() for matrix in experts[0])
    records = torch.tensor([_data(expert[0]).data_ptr() for expert in experts]).to(x.device)
    begin = gate[0] if gate else up
    chosen = products.Experts(
        format_of(experts[0][-2]), x.shape[1], experts[0][-2].shape[0], activation, records,
        0 if gate else None, up - begin, down - begin,
    )  # fmt: skip
    everyone = torch.arange(len(experts), device=x.device).repeat(len(x))
    return chosen(Normed.of(x), everyone, len(experts)).view(len(x), len(experts), -1).transpose(0, 1)


def _data(matrix: Matrix) -> Tensor:
    return matrix.data if isinstance(matrix, Packed) else matrix


def _expert(x: Tensor, expert: Expert, biases: Biases, activation: Activation) -> Tensor:
    *matrices, down = expert
    made = linear(inner(x, matrices, activation, biases[:-1]), down)
    return made.add_(biases[-1]) if biases else made


def _padded(x: Tensor) -> Tensor:
    """Repeat the last row up to one of few heights: torch's product compiles itself anew for each it meets."""
    count = len(x)
    size = 1 << (count - 1).bit_length() if count <= 16 else -(-count // 16) * 16
    return x if size == count else torch.cat((x, x[-1:].expand(size - count, -1)))

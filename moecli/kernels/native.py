"""The native kernels: weights of every format times activations, in C, by the best instructions of this processor."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from moecli.errors import CheckpointError
from moecli.formats import TILED, bytes_for
from moecli.formats.blocks import check_finite
from moecli.formats.published import Blocks
from moecli.formats.tiles import LARGEST
from moecli.kernels import abi
from moecli.kernels.library import library, loaded
from moecli.model.spec import Activation

Expert = Sequence[Tensor]  # packed gate [I, D], up [I, D], down [D, I]; without a gate where there are two
Biases = Sequence[Tensor]  # of the same matrices: plain vectors of one type, [I], [I], [D]

# enum format, activation, number and status of c/native.h
_IN_ORDER = "q4", "q3", "mxfp4", "q4_0", "iq4_nl", "q8", "fp32", "bf16", "fp16", "int8", "nf4"
FORMATS = {name: number for number, name in enumerate(_IN_ORDER)}
ACTIVATIONS = {
    Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.RELU: 3, Activation.RELU_SQUARED: 4,
    Activation.CLAMPED_SWIGLU: 5, Activation.SILU_TO_7: 6, Activation.SILU_TO_16: 7,
}  # fmt: skip
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DONE, _NOT_FINITE, _TOO_LARGE = 0, 2, 3
_SCALE_BYTES = {"mxfp4": 1, "q4_0": 2, "iq4_nl": 2}
_PANEL_ROWS = 16  # that lie together in tiled formats: where a stacked matrix may be cut


def available(dtype: str) -> bool:
    """Whether matrices of a format, such as "q4", can be multiplied natively here.

    UsageError if MOECLI_ISA names an instruction set that is not here.
    """
    return dtype in FORMATS and library() is not None


def can_cut(dtype: str, intermediate_size: int) -> bool:
    """Whether gate and up of that many rows each can be told apart where they are stacked, [2I, D]."""
    return dtype not in TILED or intermediate_size % _PANEL_ROWS == 0


def linear(dtype: str, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """x [T, in] on the CPU times the matrix [out, in], `shape`, by its bytes: [T, out], in x's precision.

    For tiles x is rounded to int8 with a scale per 32 columns; sums are in float32. Each result depends on its token
    and its row alone, to the last bit. ValueError if x or the bytes do not have that shape.
    """
    found = loaded()
    rows = _rows(x, shape[1])
    weights = address(packed, bytes_for(dtype, shape))
    output = rows.new_empty(rows.shape[0], shape[0])
    call = abi.Linear(found.thread_pool(), FORMATS[dtype], _tokens(rows), weights, shape[0], output.data_ptr())
    found.call("linear", call)
    return output if output.dtype == x.dtype else output.to(x.dtype)


def feed_forward(
    dtype: str,
    x: Tensor,
    experts: Sequence[Expert],
    intermediate_size: int,
    activation: Activation,
    biases: Sequence[Biases] = (),
) -> Tensor:
    """Each expert's down(activation(gate x) * up x) for x [T, D] on the CPU: [n, T, D] in fp32.

    gate and up are [I, D] and down is [D, I], where I is `intermediate_size`; without a gate it is
    down(activation(up x)). `biases` of all experts or of none. x and what is between are rounded as by `linear`; no
    result depends on the other tokens or experts. ValueError if shapes do not agree.
    """
    rows = _rows(x, x.shape[-1])
    hidden_size = rows.shape[1]
    up_bytes = bytes_for(dtype, (intermediate_size, hidden_size))
    down_bytes = bytes_for(dtype, (hidden_size, intermediate_size))
    sizes = up_bytes, up_bytes, down_bytes
    matrices = [place for expert in experts for place in _addresses(expert, sizes)]
    output = torch.empty(len(experts), *rows.shape)
    added = [place for each in biases for place in _vectors(each, (intermediate_size, intermediate_size, hidden_size))]
    of = biases[0][0].dtype if biases else None
    _call_experts("feed_forward", dtype, activation, rows, matrices, added, of, intermediate_size, output)
    return output


def add_weighted(
    sums: Tensor,
    dtype: str,
    x: Tensor,
    experts: Sequence[Expert],
    intermediate_size: int,
    activation: Activation,
    counts: Sequence[int],
    rows: Tensor,
    weights: Tensor,
    at_once: int,
) -> None:
    """Add to sums, float32 [T, D], what experts without biases make of those rows of x [T, D] that take them.

    `counts` says how many take each expert, `rows` which, int64 [n], and `weights`, float32 [n], by how much. The same
    bits as `feed_forward`, a product and `index_add_`, expert after expert; at most `at_once` rows are computed at
    once. ValueError if shapes do not agree.
    """
    tokens = _rows(x, x.shape[-1])
    few = sum(counts) == len(rows) == len(weights) and len(counts) == len(experts) and sums.shape == x.shape
    if not few or rows.dtype != torch.int64 or not weights.dtype == sums.dtype == torch.float32:
        raise ValueError(f"{len(rows)} rows and {len(weights)} weights of {len(experts)} experts: they do not agree")
    if not (rows.is_contiguous() and weights.is_contiguous() and sums.is_contiguous()):
        raise ValueError("rows, weights and sums have to lie in one piece")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(x):
        raise ValueError(f"a row that is none of {len(x)}")
    up_bytes = bytes_for(dtype, (intermediate_size, x.shape[1]))
    sizes = up_bytes, up_bytes, bytes_for(dtype, (x.shape[1], intermediate_size))
    addresses = array("Q", [place for expert in experts for place in _addresses(expert, sizes)])
    found, taken = loaded(), array("q", counts)
    each = abi.FeedForward(
        found.thread_pool(), FORMATS[dtype], ACTIVATIONS[activation], False, 0, _tokens(tokens),
        addresses.buffer_info()[0], None, len(experts), intermediate_size, None,
    )  # fmt: skip
    call = abi.WeightedSum(each, taken.buffer_info()[0], rows.data_ptr(), weights.data_ptr(), at_once, sums.data_ptr())
    found.call("weighted_sum", call)


def stacked_feed_forward(
    dtype: str, x: Tensor, gate_up: Tensor, down: Tensor, intermediate_size: int, activation: Activation
) -> Tensor:
    """The same of one expert whose packed gate and up are one matrix, [2I, D], that `can_cut`: [T, D] in fp32."""
    rows = _rows(x, x.shape[-1])
    stacked = address(gate_up, bytes_for(dtype, (2 * intermediate_size, rows.shape[1])))
    matrices = [stacked, stacked, address(down, bytes_for(dtype, (rows.shape[1], intermediate_size)))]
    output = torch.empty(1, *rows.shape)
    _call_experts("feed_forward", dtype, activation, rows, matrices, [], None, intermediate_size, output, stacked=True)
    return output[0]


def inner(
    dtype: str,
    x: Tensor,
    packed: Sequence[Tensor],
    intermediate_size: int,
    activation: Activation,
    biases: Biases = (),
) -> Tensor:
    """activation(gate x) * up x for x [T, D] on the CPU, gate and up [`intermediate_size`, D]: [T, I] in fp32.

    With `packed` up alone, activation(up x). `biases` of the same matrices, or none. This is what `feed_forward`
    multiplies by down, before any rounding. ValueError if shapes do not agree.
    """
    rows = _rows(x, x.shape[-1])
    size = bytes_for(dtype, (intermediate_size, rows.shape[1]))
    output = torch.empty(len(rows), intermediate_size)
    matrices = _addresses(packed, (size, size))
    matrices.append(0)
    added = [*_vectors(biases, (intermediate_size, intermediate_size)), 0] if biases else []
    of = biases[0].dtype if biases else None
    _call_experts("gated", dtype, activation, rows, matrices, added, of, intermediate_size, output)
    return output


def _addresses(matrices: Sequence[Tensor], sizes: Sequence[int]) -> list[int]:
    """Of an expert's matrices, 0 for a gate that it lacks."""
    lacking = len(sizes) - len(matrices)
    return [0] * lacking + [address(*each) for each in zip(matrices, sizes[lacking:], strict=True)]


def pack(dtype: str, weights: Tensor) -> Tensor:
    """Quantise a matrix [out, in] on the CPU to q8, q4 or q3: its bytes, uint8, those of `formats.pack`, sooner.

    CheckpointError if a weight is not finite or too large for the scales; ValueError if it is no matrix on the CPU.
    """
    found = loaded()
    if weights.dim() != 2 or not weights.is_cpu:
        raise ValueError("only a matrix on the CPU can be packed")
    if weights.dtype not in NUMBERS:
        weights = weights.float()
    rows, columns = weights.shape
    packed = torch.empty(bytes_for(dtype, (rows, columns)), dtype=torch.uint8)
    status = found.call(
        "pack",
        abi.Pack(
            found.thread_pool(),
            FORMATS[dtype],
            NUMBERS[weights.dtype],
            weights.data_ptr(),
            rows,
            columns,
            *weights.stride(),
            packed.data_ptr(),
        ),
    )
    if status == _NOT_FINITE:
        check_finite(torch.tensor(torch.nan))
    if status == _TOO_LARGE:
        raise CheckpointError(f"a weight is larger than {LARGEST:.0f}: too large for fp16 scales")
    return packed


def repack(blocks: Blocks, packed: Tensor) -> bool:
    """Lay out blocks on the CPU as the format has them: `formats.pack` of their numbers, written to `packed`, uint8.

    False if a scale is no finite number, or too large for the format: then `packed` is of no use. ValueError if these
    are no groups of bytes on the CPU, or `packed` is not the bytes of such a matrix.
    """
    rows, columns = blocks.shape
    groups = (rows, columns // 32)
    for part, size in ((blocks.indices, 16), (blocks.scales, _SCALE_BYTES[blocks.dtype])):
        fits = part.shape == (*groups, size) and (size == 1 or part.stride(2) == 1)
        if not fits or part.dtype != torch.uint8 or not part.is_cpu:
            raise ValueError(f"{part.dtype} {tuple(part.shape)} on {part.device}: not {size} bytes of each group")
    call = abi.Repack(
        FORMATS[blocks.dtype],
        blocks.paired,
        blocks.indices.data_ptr(),
        blocks.scales.data_ptr(),
        rows,
        columns,
        *blocks.indices.stride()[:2],
        *blocks.scales.stride()[:2],
        address(packed, bytes_for(blocks.dtype, (rows, columns))),
    )
    return loaded().call("repack", call) == _DONE


def address(packed: Tensor, size: int) -> int:
    """Where the `size` bytes of a packed matrix lie in memory. ValueError if the tensor is not these, on the CPU."""
    if packed.dtype != torch.uint8 or packed.numel() != size or not packed.is_contiguous() or not packed.is_cpu:
        raise ValueError(f"{packed.dtype} {tuple(packed.shape)} on {packed.device}: not the {size} bytes of a matrix")
    return packed.data_ptr()


def _call_experts(
    function: str,
    dtype: str,
    activation: Activation,
    rows: Tensor,
    matrices: Sequence[int],
    biases: Sequence[int],
    bias_type: torch.dtype | None,
    intermediate_size: int,
    output: Tensor,
    stacked: bool = False,
) -> None:
    """Addresses of three matrices an expert, and of as many biases or of none."""
    found, addresses, added = loaded(), array("Q", matrices), array("Q", biases)
    found.call(
        function,
        abi.FeedForward(
            found.thread_pool(),
            FORMATS[dtype],
            ACTIVATIONS[activation],
            stacked,
            0 if bias_type is None else NUMBERS[bias_type],
            _tokens(rows),
            addresses.buffer_info()[0],
            added.buffer_info()[0] if biases else None,
            len(matrices) // 3,
            intermediate_size,
            output.data_ptr(),
        ),
    )


def _vectors(biases: Biases, sizes: Sequence[int]) -> list[int]:
    """Addresses of an expert's biases, 0 for that of a gate that it lacks."""
    for bias, size in zip(biases, sizes[len(sizes) - len(biases) :], strict=True):
        if bias.shape != (size,) or not bias.is_contiguous() or not bias.is_cpu or bias.dtype is not biases[0].dtype:
            raise ValueError(f"a bias of {bias.dtype} {tuple(bias.shape)} on {bias.device}: not {size} numbers here")
    return [0] * (len(sizes) - len(biases)) + [bias.data_ptr() for bias in biases]


def _rows(x: Tensor, columns: int) -> Tensor:
    """x as the kernels read it: dense rows."""
    if x.dim() != 2 or x.shape[1] != columns or not x.is_cpu:
        raise ValueError(f"activations {tuple(x.shape)} on {x.device}: not rows of {columns} on the CPU")
    return x.contiguous() if x.dtype in NUMBERS else x.float().contiguous()


def _tokens(rows: Tensor) -> abi.Tokens:
    return abi.Tokens(rows.data_ptr(), NUMBERS[rows.dtype], rows.shape[0], rows.shape[1])

"""The assembly that decodes weights on a device, run by its instructions' definitions, against the formats' codes."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moecli.formats import q3, q4
from moecli.formats.codebook import MULTIPLES
from moecli.kernels.gpu import decode

Words = NDArray[np.uint32]
ALL = (*MULTIPLES, *(-each for each in MULTIPLES))


def prmt(a: Words, b: Words, selector: Words) -> Words:
    """Bytes of a and b by the nibbles of a selector, whose top bits ask for a byte's sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(both)
    for place in range(4):
        nibble = selector.astype(np.uint64) >> np.uint64(4 * place)
        byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        sign = (byte >> np.uint64(7)) * np.uint64(255)
        result |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * place)
    return result.astype(np.uint32)


def halves(operation: Callable[..., NDArray[np.float64]]) -> Callable[..., Words]:
    """An operation on two fp16 numbers of a register, rounded once."""

    def both(*registers: Words) -> Words:
        numbers = [register.view(np.float16).astype(np.float64) for register in registers]
        return operation(*numbers).astype(np.float16).view(np.uint32)

    return both


OPERATIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "shr.u32": np.right_shift,
    "shl.b32": np.left_shift,
    "prmt.b32": prmt,
    "sub.rn.f16x2": halves(lambda a, b: a - b),
    "mul.rn.f16x2": halves(lambda a, b: a * b),
    "fma.rn.f16x2": halves(lambda a, b, c: a * b + c),
}


def run(assembly: str, outputs: int, inputs: list[Words]) -> NDArray[np.float16]:
    """What it writes, [outputs, n, two rows]."""
    registers = {f"${outputs + place}": value for place, value in enumerate(inputs)}
    for operation, operands in re.findall(r"([a-z]\w*\.[\w.]+) ([^;.]*);", assembly):
        target, *sources = operands.split(", ")
        values = [registers[s] if s in registers else np.full_like(inputs[0], int(s, 0)) for s in sources]
        registers[target] = OPERATIONS[operation](*values)
    return np.stack([registers[f"${place}"].view(np.float16).reshape(-1, 2) for place in range(outputs)])


def words(seed: int, count: int = 500) -> list[Words]:
    """Of two rows."""
    return list(np.random.default_rng(seed).integers(0, 2**32, (2, count), np.uint32))


def wanted(codes: NDArray[np.int64], multiples: list[Words]) -> NDArray[np.float64]:
    """Codes [outputs, 2, n], those of even outputs times the multiple of the low nibble."""
    chosen = np.stack([np.stack([each >> 4 * half & 15 for each in multiples]) for half in (0, 1)])
    return (codes * np.array(ALL)[chosen][np.arange(len(codes)) % 2]).transpose(0, 2, 1)


def test_indices_of_q4_become_codes_times_multiples() -> None:
    lanes, multiples = words(1), [each & 255 for each in words(2)]
    found = run(decode.Q4_ASSEMBLY.value, 8, [*lanes, *multiples])
    indices = np.stack([np.stack([lane >> 4 * place & 15 for lane in lanes]) for place in range(8)])
    assert np.array_equal(found, wanted(np.array(q4.CODES)[indices], multiples))


def test_indices_of_q3_become_codes_times_multiples() -> None:
    low, high, multiples = words(1), words(2), [each & 255 for each in words(3)]
    found = run(decode.Q3_ASSEMBLY.value, 16, [*low, *high, *multiples])
    places = [(place // 8, place // 2 % 4, place % 2) for place in range(16)]
    lower = [[lane >> 8 * b + 4 * j + 2 * h & 3 for lane in low] for j, b, h in places]
    higher = [[lane >> 8 * b + 2 * j + h & 1 for lane in high] for j, b, h in places]
    indices = np.array(lower) | np.array(higher) << 2
    assert np.array_equal(found, wanted(np.array(q3.CODES)[indices], multiples))


def test_bytes_of_q8_become_codes() -> None:
    lanes = words(1)
    found = run(decode.Q8_ASSEMBLY.value, 4, lanes)
    codes = np.stack(lanes, -1).view(np.int8).reshape(-1, 2, 4)
    assert np.array_equal(found, codes.transpose(2, 0, 1))

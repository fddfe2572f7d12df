"""Indices into codebooks become fp16 numbers, code * multiple, in registers: byte permutations, no table in memory.

`prmt` picks four bytes of eight by the nibbles of its selector: four indices of three bits are looked up at once. A
nibble's fourth bit asks for eight times the sign of the byte. With 160 added all bytes have that bit, so a table gives
ones for the indices of the other one, and "and" joins what both give. The bytes, put below a byte 0x64, are the fp16
numbers 1024 + 160 + code, and (1184 + code) * multiple - 1184 * multiple is exact, 1184 being 37 * 32. What `pack=2`
hands over is two rows at once: the halves of each register that results.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moecli.formats import codebook, q3, q4
from moecli.kernels.gpu.quantise import COMPILED

OFFSET = tl.constexpr(160)  # of the bytes in tables


def _table(numbers: tuple[int, ...]) -> tuple[tl.constexpr, ...]:
    """Their bytes, eight at a time, in 64-bit constants."""
    eights = [numbers[first : first + 8] for first in range(0, len(numbers), 8)]
    return tuple(
        tl.constexpr(int.from_bytes(bytes(number + OFFSET.value for number in eight), "little", signed=True))
        for eight in eights
    )


_MULTIPLES = (*codebook.MULTIPLES, *(-each for each in codebook.MULTIPLES))
Q4_LOW, Q4_HIGH = _table(q4.CODES)
(Q3_TABLE,) = _table(q3.CODES)
MULTIPLES_LOW, MULTIPLES_HIGH = _table(_MULTIPLES)


def _words(*tables: tl.constexpr) -> list[str]:
    """The halves of 64-bit constants, as assembly has them."""
    return [f"0x{table.value >> shift & 0xFFFFFFFF:08x}" for table in tables for shift in (0, 32)]


def _look_up_16(result: str, selector: str, other: str, words: list[str]) -> str:
    """Four bytes of 16 in `words`, by the low nibbles of a register, whose top bits `other` has flipped."""
    return f"""
        prmt.b32 t, {words[0]}, {words[1]}, {selector};
        prmt.b32 u, {words[2]}, {words[3]}, {other};
        and.b32 {result}, t, u;"""


def _multiples(first: str, second: str) -> str:
    """m0, m1: both halves' multiples of two rows, by their bytes of multiples; n0, n1: -1184 times them."""
    lines = f"""
        prmt.b32 a, {first}, {second}, 0x0040;
        xor.b32 b, a, 0x8888;"""
    lines += _look_up_16("s", "a", "b", _words(MULTIPLES_LOW, MULTIPLES_HIGH))
    for half, pick in enumerate(("0x4240", "0x4341")):
        lines += f"""
        prmt.b32 m{half}, s, 0x64646464, {pick};
        sub.rn.f16x2 m{half}, m{half}, big;
        mul.rn.f16x2 n{half}, m{half}, minus;"""
    return lines


def _to_numbers(output: int, pick: str, half: int) -> str:
    """The numbers of one index of both rows, whose codes are bytes of s."""
    return f"""
        prmt.b32 t, s, 0x64646464, {pick};
        fma.rn.f16x2 ${output}, t, m{half}, n{half};"""


_BEGIN = """{
        .reg .b32 a, b, s, t, u, v, m0, m1, n0, n1, big, minus;
        mov.b32 big, 0x64a064a0;
        mov.b32 minus, 0xe4a0e4a0;"""


def _q4_assembly() -> str:
    lines = _BEGIN + _multiples("$10", "$11")
    for byte, rows in ((0, "0x5140"), (2, "0x7362")):  # that byte of both rows and the next: eight nibbles
        lines += f"""
        prmt.b32 a, $8, $9, {rows};
        xor.b32 b, a, 0x88888888;"""
        for place in (byte, byte + 1):
            lines += _look_up_16("s", "a", "b", _words(Q4_LOW, Q4_HIGH))
            lines += _to_numbers(2 * place, "0x4240", 0) + _to_numbers(2 * place + 1, "0x4341", 1)
            if place == byte:
                lines += """
        shr.u32 a, a, 16;
        shr.u32 b, b, 16;"""
    return lines + "\n}"


def _q3_assembly() -> str:
    low, high = _words(Q3_TABLE)
    lines = _BEGIN + "\n        .reg .b32 i0, i1;" + _multiples("$20", "$21")
    for half in (0, 1):
        for row in (0, 1):  # nibble 2 b + j % 2 of i: an index
            lines += f"""
        shr.u32 t, ${16 + row}, {2 * half};
        and.b32 t, t, 0x33333333;
        shl.b32 u, ${18 + row}, {2 - half};
        and.b32 u, u, 0x04040404;
        shl.b32 v, ${18 + row}, {4 - half};
        and.b32 v, v, 0x40404040;
        or.b32 t, t, u;
        or.b32 i{row}, t, v;"""
        for byte, rows in ((0, "0x5140"), (2, "0x7362")):
            lines += f"\n        prmt.b32 a, i0, i1, {rows};"
            for place in (byte, byte + 1):
                lines += f"\n        prmt.b32 s, {low}, {high}, a;"
                lines += _to_numbers(2 * place + half, "0x4240", half)
                lines += _to_numbers(8 + 2 * place + half, "0x4341", half)
                lines += "\n        shr.u32 a, a, 16;" if place == byte else ""
    return lines + "\n}"


def _q8_assembly() -> str:
    lines = "{\n        .reg .b32 a, t, big;\n        mov.b32 big, 0x64806480;"  # 1024 + 128
    for byte, rows in ((0, "0x5140"), (2, "0x7362")):
        lines += f"""
        prmt.b32 a, $4, $5, {rows};
        xor.b32 a, a, 0x80808080;"""  # code + 128
        for b, pick in ((byte, "0x4140"), (byte + 1, "0x4342")):
            lines += f"""
        prmt.b32 t, a, 0x64646464, {pick};
        sub.rn.f16x2 ${b}, t, big;"""
    return lines + "\n}"


Q4_ASSEMBLY, Q3_ASSEMBLY = tl.constexpr(_q4_assembly()), tl.constexpr(_q3_assembly())
Q8_ASSEMBLY, Q8_CONSTRAINTS = tl.constexpr(_q8_assembly()), tl.constexpr(",".join(["=&r"] * 4 + ["r"] * 2))
Q4_CONSTRAINTS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 4))
Q3_CONSTRAINTS = tl.constexpr(",".join(["=&r"] * 16 + ["r"] * 6))


@triton.jit
def _look_up(index, LOW: tl.constexpr, HIGH: tl.constexpr):
    """A number of 16 in tables, without assembly: int32."""
    table = tl.where(index < 8, tl.full(index.shape, LOW, tl.int64), tl.full(index.shape, HIGH, tl.int64))
    return (table >> (index % 8 * 8).to(tl.int64) & 255).to(tl.int32) - OFFSET


@triton.jit
def _numbers(index, multiples, half, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Code * multiple, without assembly: fp16 [all but the last two dimensions' product, N]."""
    multiple = _look_up(multiples >> 4 * half & 15, MULTIPLES_LOW, MULTIPLES_HIGH)
    numbers = (_look_up(index, LOW, HIGH) * multiple).to(tl.float16)
    return tl.reshape(numbers, (numbers.shape[0] * numbers.shape[1], numbers.shape[2]))


@triton.jit
def _stack(a, b, c, d, e, f, g, h):
    """Eight tensors [L, N] by rows, the first rows of all first: [8 L, N]."""
    pairs_0, pairs_1 = tl.join(a, b), tl.join(c, d)
    pairs_2, pairs_3 = tl.join(e, f), tl.join(g, h)
    all = tl.join(tl.join(pairs_0, pairs_1), tl.join(pairs_2, pairs_3))  # [L, N, bit 0, bit 1, bit 2]
    return tl.reshape(tl.permute(all, (0, 4, 3, 2, 1)), (8 * a.shape[0], a.shape[1]))


@triton.jit
def decode_q4(lines, multiples):
    """Code * multiple of groups of 32 columns, fp16 [32 G, N], by int32 lines [4 G, N] and their bytes, int32 [4 G, N].

    Columns of a group are in the order of `place_in_group`.
    """
    if COMPILED:
        # fmt: off
        n = tl.inline_asm_elementwise(
            Q4_ASSEMBLY, Q4_CONSTRAINTS, [lines, multiples],
            (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16), True, 2
        )
        # fmt: on
        return _stack(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7])
    else:
        nibble = tl.arange(0, 8)[None, :, None]
        return _numbers(lines[:, None, :] >> 4 * nibble & 15, multiples[:, None, :], nibble % 2, Q4_LOW, Q4_HIGH)


@triton.jit
def decode_q3(low, high, multiples):
    """The same by two lines of lower bits [2 G, N], and of higher bits shifted to the right by 4 for the second one."""
    if COMPILED:
        # fmt: off
        n = tl.inline_asm_elementwise(
            Q3_ASSEMBLY, Q3_CONSTRAINTS, [low, high, multiples],
            (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16,
             tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16), True, 2
        )
        # fmt: on
        first = _stack(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7])
        second = _stack(n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15])
        both = tl.join(
            tl.reshape(first, (low.shape[0], 8, low.shape[1])), tl.reshape(second, (low.shape[0], 8, low.shape[1]))
        )
        return tl.reshape(tl.permute(both, (0, 3, 1, 2)), (16 * low.shape[0], low.shape[1]))
    else:
        place = tl.arange(0, 16)[None, :, None]  # 8 (j % 2) + 2 b + h
        j, b, h = place // 8, place // 2 % 4, place % 2
        index = (low[:, None, :] >> (8 * b + 4 * j + 2 * h) & 3) | (high[:, None, :] >> (8 * b + 2 * j + h) & 1) << 2
        return _numbers(index, multiples[:, None, :], h, Q3_TABLE, Q3_TABLE)


@triton.jit
def decode_q8(lines):
    """The codes, fp16 [32, N], of one group's int32 lines [8, N], in the same order of columns."""
    if COMPILED:
        # fmt: off
        n = tl.inline_asm_elementwise(
            Q8_ASSEMBLY, Q8_CONSTRAINTS, [lines], (tl.float16, tl.float16, tl.float16, tl.float16), True, 2
        )
        # fmt: on
        codes = tl.join(tl.join(n[0], n[1]), tl.join(n[2], n[3]))  # [8, N, bit 0 of b, bit 1 of b]
        codes = tl.permute(tl.reshape(codes, (2, 4, lines.shape[1], 2, 2)), (1, 4, 3, 0, 2))
    else:
        byte = tl.arange(0, 4)[None, :, None]
        codes = (lines[:, None, :] << (24 - 8 * byte) >> 24).to(tl.float16)
        codes = tl.permute(tl.reshape(codes, (2, 4, 4, lines.shape[1])), (1, 2, 0, 3))
    return tl.reshape(codes, (32, lines.shape[1]))

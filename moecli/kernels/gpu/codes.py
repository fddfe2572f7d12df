"""Weights of q4, q3 and q8 as signed bytes, four to a register, and their products with int8 activations.

The formats' bytes are described in `moecli/formats/`. `prmt` looks up four bytes at once, and `dp4a` multiplies them.
"""

from __future__ import annotations

import triton.language as tl

from moecli.formats import q3, q4
from moecli.formats.codebook import MULTIPLES
from moecli.kernels.gpu.functions import device_function

# prmt takes the fourth bit of a place for "repeat the sign". Of q4's codes less 97 all are negative, so what a table of
# eight gives for places of the other table is all ones, and "and" joins the two.
BIAS = tl.constexpr(97)
_BIASES = tl.constexpr(0x61616161)


def _words(numbers: tuple[int, ...]) -> list[int]:
    """Signed bytes, four to a 32-bit word."""
    return [int.from_bytes(bytes(n & 255 for n in numbers[i : i + 4]), "little") for i in range(0, len(numbers), 4)]


def _assembly(text: str, numbers: tuple[int, ...]) -> tl.constexpr:
    """With the words of a table in place of W0, W1, ..."""
    for place, word in enumerate(_words(numbers)):
        text = text.replace(f"W{place}", f"{word:#x}")
    return tl.constexpr(text)


_BIASED = tuple(code - BIAS.value for code in q4.CODES)
_SIGNED = (*MULTIPLES, *(-each for each in MULTIPLES))

_Q4 = _assembly(
    """{
    .reg .b32 high, shifted, below, above, first, second;
    xor.b32 high, $2, 0x88888888;
    prmt.b32 below, W0, W1, $2;
    prmt.b32 above, W2, W3, high;
    and.b32 first, below, above;
    shr.u32 shifted, $2, 16;
    shr.u32 high, high, 16;
    prmt.b32 below, W0, W1, shifted;
    prmt.b32 above, W2, W3, high;
    and.b32 second, below, above;
    prmt.b32 $0, first, second, 0x6420;
    prmt.b32 $1, first, second, 0x7531;
    }""",
    _BIASED,
)
_Q3 = _assembly(
    """{
    .reg .b32 first, second, shifted;
    prmt.b32 first, W0, W1, $2;
    shr.u32 shifted, $2, 16;
    prmt.b32 second, W0, W1, shifted;
    prmt.b32 $0, first, second, 0x6420;
    prmt.b32 $1, first, second, 0x7531;
    }""",
    q3.CODES,
)
_MULTIPLES = _assembly(
    """{
    .reg .b32 high, choice, below, above, both;
    xor.b32 high, $2, 0x88;
    shr.u32 choice, $2, 1;
    and.b32 choice, choice, 0x44;
    or.b32 choice, choice, 0x3210;
    prmt.b32 below, W0, W1, $2;
    prmt.b32 above, W2, W3, high;
    prmt.b32 both, below, above, choice;
    prmt.b32 $0, both, both, 0x8880;
    prmt.b32 $1, both, both, 0x9991;
    }""",
    _SIGNED,
)


@device_function
def dp4a(a, b, sums):
    """sums + the four products of the signed bytes in a and b; int32."""
    return tl.inline_asm_elementwise(
        "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, sums], dtype=tl.int32, is_pure=True, pack=1
    )


@device_function
def q4_codes(line):
    """Of a line of q4's indices, less BIAS: 4 codes of the first 16 columns of each row, and 4 of the others."""
    return tl.inline_asm_elementwise(_Q4, "=r,=r,r", [line], dtype=(tl.int32, tl.int32), is_pure=True, pack=1)


@device_function
def q3_codes(low_bits, high_bits, J: tl.constexpr):
    """The same of q3, without a bias, from the line J // 2 of lower bits and that of the highest."""
    low = low_bits >> (4 * (J % 2))
    high = high_bits >> (2 * J)
    nibbles = (low & 0x03030303) | ((low & 0x0C0C0C0C) << 2)
    nibbles |= ((high & 0x01010101) << 2) | ((high & 0x02020202) << 5)
    return tl.inline_asm_elementwise(_Q3, "=r,=r,r", [nibbles], dtype=(tl.int32, tl.int32), is_pure=True, pack=1)


@device_function
def multiples(choices):
    """What a byte of choices, in int32, multiplies the first and the other 16 columns of a group by."""
    return tl.inline_asm_elementwise(_MULTIPLES, "=r,=r,r", [choices], dtype=(tl.int32, tl.int32), is_pure=True, pack=1)


@device_function
def bias(x):
    """BIAS times the four activations of a lane: what codes lack from which it was taken."""
    return dp4a(x, tl.full(x.shape, _BIASES, tl.int32), x * 0)

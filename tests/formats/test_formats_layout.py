"""The bytes of q4, q3 and q8 tiles, by hand and by decoders in plain Python that know only the description."""

from __future__ import annotations

import struct
from functools import partial

import pytest
import torch

from moecli.formats import bytes_for, codebook, pack, q3, q4, q8, unpack
from tests.support.weight_samples import gaussian, heavy

CODES = {
    "q4": (-31, -25, -20, -15, -11, -8, -5, -2, 0, 3, 6, 9, 12, 16, 21, 28),
    "q3": (-31, -19, -11, -5, 0, 6, 13, 22),
}
MULTIPLES = (2, 3, 5, 6, 7, 8, 9, 10)


def index_in_q4(lines: bytes, r: int, k: int) -> int:
    """Of row r and column k in the 256 bytes of a group."""
    half, j, b = k // 16, k % 16 // 4, k % 4
    return lines[64 * j + 4 * r + b] >> 4 * half & 15


def index_in_q3(lines: bytes, r: int, k: int) -> int:
    half, j, b = k // 16, k % 16 // 4, k % 4
    low = lines[64 * (j // 2) + 4 * r + b] >> 4 * (j % 2) + 2 * half & 3
    return low + 4 * (lines[128 + 4 * r + b] >> 2 * j + half & 1)


def read_codebook(name: str, data: bytes, rows: int, columns: int) -> list[list[float]]:
    """One weight at a time."""
    size, index = {"q4": (256, index_in_q4), "q3": (192, index_in_q3)}[name]
    strip = -(-columns // 32) * (16 + size) + -(-columns // 256) * 32
    matrix = []
    for row in range(rows):
        line = []
        for column in range(columns):
            width = min(512, columns - column // 512 * 512)
            groups, scales = -(-width // 32), -(-width // 256)
            tile = data[row // 16 * strip + column // 512 * (16 * (16 + size) + 64) :]
            r, place = row % 16, column % 512
            (scale,) = struct.unpack_from("<e", tile, 32 * (place // 256) + 2 * r)
            choice = tile[32 * scales + 16 * (place // 32) + r] >> 4 * (place % 32 // 16) & 15
            multiple = MULTIPLES[choice & 7] * (-1 if choice & 8 else 1)
            lines = tile[32 * scales + 16 * groups + size * (place // 32) :][:size]
            line.append(CODES[name][index(lines, r, place % 32)] * multiple * scale / 128)
        matrix.append(line)
    return matrix


def read_q4(data: bytes, rows: int, columns: int) -> list[list[float]]:
    return read_codebook("q4", data, rows, columns)


def read_q3(data: bytes, rows: int, columns: int) -> list[list[float]]:
    return read_codebook("q3", data, rows, columns)


def read_q8(data: bytes, rows: int, columns: int) -> list[list[float]]:
    tiles = -(-columns // 32)
    matrix = []
    for row in range(rows):
        line = []
        for column in range(columns):
            tile = data[((row // 16) * tiles + column // 32) * 544 :][:544]
            r, k = row % 16, column % 32
            (scale,) = struct.unpack_from("<e", tile, 2 * r)
            (code,) = struct.unpack_from("<b", tile, 32 + 64 * (k // 4) + 4 * r + k % 4)
            line.append(code * scale / 128)
        matrix.append(line)
    return matrix


PUBLISHED = {
    "mxfp4": tuple(2 * sign * each for sign in (1, -1) for each in (0, 0.5, 1, 1.5, 2, 3, 4, 6)),
    "q4_0": tuple(range(-8, 8)),
    "iq4_nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
}


def read_grouped(name: str, data: bytes, rows: int, columns: int) -> list[list[float]]:
    """One of 16 codes times a scale for 32: fp16, or a power of two by its exponent plus 128."""
    size = 1 if name == "mxfp4" else 2
    groups = -(-columns // 32)
    strip_bytes = groups * (256 + 16 * size)
    matrix = []
    for row in range(rows):
        strip, r = data[row // 16 * strip_bytes :][:strip_bytes], row % 16
        line = []
        for column in range(columns):
            tile, place = divmod(column, 512 if size == 1 else 32)
            width = min(16, groups - 16 * tile) if size == 1 else 1
            at, group = tile * (16 if size == 1 else 1) * (256 + 16 * size), place // 32
            scales = strip[at : at + width * 16 * size]
            number = scales[16 * group + r]
            scale = 2.0 ** (number - 128) if size == 1 else struct.unpack_from("<e", scales, 32 * group + 2 * r)[0]
            lines = strip[at + width * 16 * size + 256 * group :][:256]
            line.append(PUBLISHED[name][index_in_q4(lines, r, column % 32)] * scale)
        matrix.append(line)
    return matrix


READERS = [
    ("q4", read_q4), ("q3", read_q3), ("q8", read_q8), *((name, partial(read_grouped, name)) for name in PUBLISHED),
]  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 128), (33, 300), (1, 5), (18, 1440), (16, 1024), (3, 513)])
@pytest.mark.parametrize(("name", "read"), READERS)
def test_an_independent_reader_sees_the_same_weights(name: str, read: object, shape: tuple[int, int]) -> None:
    packed = pack(name, heavy(*shape))
    assert callable(read)
    assert torch.equal(torch.tensor(read(packed.numpy().tobytes(), *shape)), unpack(name, packed, shape, torch.float32))


@pytest.mark.parametrize(("name", "read"), READERS)
def test_any_bytes_mean_the_same_to_both(name: str, read: object) -> None:
    """Also codes and scales that packing never writes."""
    shape = (32, 256)
    packed = (gaussian(bytes_for(name, shape)).mul(1000).long() % 256).to(torch.uint8)
    by_group = name in ("q8", "q4_0", "iq4_nl")
    scales = packed.view(8 * 2 if by_group else 2, -1)[:, : 256 if name == "mxfp4" else 32]
    scales[:, 1::2] &= 0xBF  # keeps every scale finite
    scales[:, ::2] &= 0xBF if name == "mxfp4" else 0xFF
    assert callable(read)
    assert torch.equal(torch.tensor(read(packed.numpy().tobytes(), *shape)), unpack(name, packed, shape, torch.float32))


def test_a_q4_tile_by_hand() -> None:
    tile = bytearray(4416)  # 512 columns: 64 bytes of scales, 256 of multiples
    tile[32 + 6 : 32 + 8] = bytes((0x00, 0xBC))  # row 3, the second 256 columns: -1.0
    tile[64 + 16 * 9 + 3] = 0xB1  # of them the second 32: 3, and -6 for the last 16
    tile[320 + 256 * 9 + 64 * 1 + 4 * 3 + 1] = 0x5E  # line 1, byte 1: columns 288 + 5 and 288 + 21
    found = unpack("q4", torch.tensor(list(tile), dtype=torch.uint8), (16, 512), torch.float32)
    assert float(found[3, 288 + 5]) == -21 * 3 / 128
    assert float(found[3, 288 + 21]) == 8 * -6 / 128
    assert (found[3, 256:288] == 31 * 2 / 128).all()
    assert found.count_nonzero() == 256


def test_a_q3_tile_by_hand() -> None:
    tile = bytearray(2 * 208 + 32)  # 64 columns: 32 bytes of scales, 32 of multiples, twice 192 of indices
    tile[30:32] = bytes((0x00, 0x3C))  # row 15: 1.0
    tile[32 + 16 + 15] = 0x80  # the second 32 columns: 2, and -2 for the last 16
    tile[64 + 192 + 64 + 4 * 15 + 2] = 0b01_11_10_00  # line 1, byte 2: columns 10, 26, 14 and 30 of the second 32
    tile[64 + 192 + 128 + 4 * 15 + 2] = 0b1010_0000  # their highest bits: 4, 5, 6 and 7
    found = unpack("q3", torch.tensor(list(tile), dtype=torch.uint8), (16, 64), torch.float32)
    assert [float(found[15, 32 + k]) for k in (10, 26, 14, 30)] == [
        code * multiple / 128 for code, multiple in ((-31, 2), (13, -2), (-5, 2), (6, -2))
    ]


def test_a_q8_tile_by_hand() -> None:
    tile = bytearray(544)
    tile[10:12] = bytes((0x00, 0x40))  # row 5: 2.0
    tile[32 + 64 * 7 + 4 * 5 + 2] = 0x81  # column 30: -127
    found = unpack("q8", torch.tensor(list(tile), dtype=torch.uint8), (16, 32), torch.float32)
    assert float(found[5, 30]) == -127 / 64
    assert found.count_nonzero() == 1


@pytest.mark.parametrize("name", CODES)
def test_codes_times_multiples_are_packed_as_they_are(name: str) -> None:
    """Every 16 weights of a row have all codes, on another multiple of one scale."""
    codes = torch.tensor(CODES[name], dtype=torch.float32).repeat(16 // len(CODES[name]))
    multiples = torch.tensor([sign * each for each in MULTIPLES for sign in (1, -1)], dtype=torch.float32)
    weights = (multiples[:, None] * codes / 128).view(1, 256).repeat(16, 1)
    tile = bytes(pack(name, weights).tolist())
    assert tile[:32] == struct.pack("<e", 1.0) * 16
    assert tile[32 : 32 + 128] == b"".join(bytes([choice * 17 + 128]) * 16 for choice in range(8))
    assert torch.equal(unpack(name, pack(name, weights), (16, 256), torch.float32), weights)


def test_padding_is_the_index_of_code_0() -> None:
    for name, columns in (("q4", 33), ("q3", 33), ("q4", 512)):
        whole = torch.zeros(16, -(-columns // 32) * 32)
        whole[0, :columns] = 1
        assert torch.equal(pack(name, whole[:1, :columns]), pack(name, whole))
    assert CODES["q4"] == q4.CODES and CODES["q3"] == q3.CODES and MULTIPLES == codebook.MULTIPLES
    q8 = bytes(pack("q8", torch.ones(1, 10)).tolist())
    assert q8[2:32] == bytes(30) and sum(q8[32:]) == 10 * 64  # of what keeps a 1, the most


@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (37, 70), (50, 160)])
def test_rows_of_q8_are_those_of_the_whole(shape):
    packed = pack("q8", torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(q8.gather(packed, shape, rows, dtype), unpack("q8", packed, shape, dtype)[rows])

"""The bytes of q4 and q8 tiles, by hand and by decoders in plain Python that know only the description."""

from __future__ import annotations

import struct

import pytest
import torch

from moecli.formats import pack, q4, unpack
from tests.support.weight_samples import gaussian, heavy

CODES = (-127, -96, -75, -59, -46, -34, -22, -10, 1, 13, 24, 36, 49, 64, 83, 110)


def read_q4(data: bytes, rows: int, columns: int) -> list[list[float]]:
    """One weight at a time."""
    tiles = -(-columns // 128)
    matrix = []
    for row in range(rows):
        line = []
        for column in range(columns):
            tile = data[((row // 16) * tiles + column // 128) * 1088 :][:1088]
            r, group, k = row % 16, column % 128 // 64, column % 64
            (scale,) = struct.unpack_from("<e", tile, 2 * (16 * group + r))
            high, j, b = k // 32, k % 32 // 4, k % 4
            byte = tile[64 * (1 + 8 * group + j) + 4 * r + b]
            line.append(CODES[byte >> 4 if high else byte & 15] * scale / 128)
        matrix.append(line)
    return matrix


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


@pytest.mark.parametrize("shape", [(16, 128), (33, 300), (1, 5), (18, 2880)])
@pytest.mark.parametrize(("name", "read"), [("q4", read_q4), ("q8", read_q8)])
def test_an_independent_reader_sees_the_same_weights(name: str, read: object, shape: tuple[int, int]) -> None:
    packed = pack(name, heavy(*shape))
    assert callable(read)
    assert torch.equal(torch.tensor(read(packed.numpy().tobytes(), *shape)), unpack(name, packed, shape, torch.float32))


@pytest.mark.parametrize(("name", "size", "read"), [("q4", 1088, read_q4), ("q8", 544, read_q8)])
def test_any_bytes_mean_the_same_to_both(name: str, size: int, read: object) -> None:
    """Also codes and scales that packing never writes."""
    packed = (gaussian(4 * size).mul(1000).long() % 256).to(torch.uint8)
    scales = packed.view(-1, size)[:, : 64 if name == "q4" else 32]
    scales[:, 1::2] &= 0xBF  # keeps every scale finite
    shape = (32, 256 if name == "q4" else 64)
    assert callable(read)
    assert torch.equal(torch.tensor(read(packed.numpy().tobytes(), *shape)), unpack(name, packed, shape, torch.float32))


def test_a_q4_tile_by_hand() -> None:
    tile = bytearray(1088)
    tile[38:40] = bytes((0x00, 0xBC))  # row 3, second half: -1.0
    tile[64 * 10 + 13] = 0x5E  # line 9 + 1; row 3, byte 1: columns 64 + 5 and 64 + 37
    found = unpack("q4", torch.tensor(list(tile), dtype=torch.uint8), (16, 128), torch.float32)
    assert float(found[3, 64 + 5]) == -83 / 128
    assert float(found[3, 64 + 37]) == 34 / 128
    assert (found[3, 64:] == 127 / 128).sum() == 62
    assert found.count_nonzero() == 64


def test_a_q8_tile_by_hand() -> None:
    tile = bytearray(544)
    tile[10:12] = bytes((0x00, 0x40))  # row 5: 2.0
    tile[32 + 64 * 7 + 4 * 5 + 2] = 0x81  # column 30: -127
    found = unpack("q8", torch.tensor(list(tile), dtype=torch.uint8), (16, 32), torch.float32)
    assert float(found[5, 30]) == -127 / 64
    assert found.count_nonzero() == 1


def test_codes_times_a_scale_are_packed_as_they_are() -> None:
    """Each group of a row has all codes four times, on scales of either sign."""
    codes = torch.tensor(CODES, dtype=torch.float32).repeat(4)
    weights = torch.cat([codes / 128, codes.flip(0) * (-3 / 128)]).repeat(16, 1)
    tile = bytes(pack("q4", weights).tolist())
    assert tile[:64] == struct.pack("<e", 1.0) * 16 + struct.pack("<e", -3.0) * 16
    assert tile[64:80] == bytes((0x00, 0x11, 0x22, 0x33)) * 4  # columns 0 to 3 and 32 to 35 of four rows
    assert tile[64 * 9 : 64 * 9 + 4] == bytes((0xFF, 0xEE, 0xDD, 0xCC))
    assert torch.equal(unpack("q4", pack("q4", weights), (16, 128), torch.float32), weights)


def test_padding_is_index_8_and_scale_0() -> None:
    tile = bytes(pack("q4", torch.ones(1, 10)).tolist())
    assert tile[2:64] == bytes(62) and tile[:2] != bytes(2)
    assert set(tile[64 * 9 :]) == {0x88} and tile[68:128] == bytes((0x88,)) * 60
    assert {tile[64 * j + b] & 15 for j in (1, 2) for b in range(4)} == {tile[64] & 15}  # columns 0 to 7
    assert q4.CODEBOOK == CODES and CODES[8] == 1
    q8 = bytes(pack("q8", torch.ones(1, 10)).tolist())
    assert q8[2:32] == bytes(30) and sum(q8[32:]) == 10 * 127

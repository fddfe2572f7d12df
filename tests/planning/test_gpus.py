"""GPUs by the names people give them."""

from __future__ import annotations

import pytest

from moecli.errors import UsageError
from moecli.planning.gpus import GPUS, parse_gpu


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        ("h100", "h100", 1), ("H100:4", "h100", 4), ("4090", "rtx4090", 1), ("rtx4090:2", "rtx4090", 2),
        ("RTX 4090", "rtx4090", 1), ("RTX-4090", "rtx4090", 1), ("NVIDIA GeForce RTX 3060", "rtx3060", 1),
        ("a100", "a100-80", 1), ("a100-40", "a100-40", 1), ("rtx_6000_ada", "rtx6000ada", 1), ("3090", "rtx3090", 1),
        ("5090:1024", "rtx5090", 1024), ("t4:", "t4", 1), ("t4:01", "t4", 1),
    ],
)  # fmt: skip
def test_a_gpu_by_any_of_its_names(text: str, name: str, number: int) -> None:
    assert parse_gpu(text) == (GPUS[name], number)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("h1000", "unknown GPU 'h1000'", "did you mean h100"), ("rtx4091", "unknown GPU 'rtx4091'", "rtx4090"),
        ("abacus", "unknown GPU 'abacus'", "?"), ("", "unknown GPU ''", "a10, a100-40"), (":2", "unknown GPU ''", "?"),
        ("h100:0", "'0' is not a number of GPUs", "NAME:N"), ("h100:1025", "'1025' is not", "NAME:N"),
        ("h100:-1", "'-1' is not", "NAME:N"), ("h100:two", "'two' is not", "NAME:N"), ("h100:1.5", "'1.5'", "NAME:N"),
    ],
)  # fmt: skip
def test_what_is_no_gpu_is_refused(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_gpu(text)
    assert said in refused.value.message and hint in (refused.value.hint or "")
    assert refused.value.message.startswith(f"--gpu {text}: ")


# GiB, bits of the bus, and Gbit/s of each: what boards with GDDR are made of.
BOARDS = {
    "t4": (16, 256, 10), "l4": (24, 192, 12.5), "a10": (24, 384, 12.5), "l40s": (48, 384, 18),
    "rtx3060": (12, 192, 15), "rtx3090": (24, 384, 19.5), "rtx4060": (8, 128, 17), "rtx4070": (12, 192, 21),
    "rtx4080": (16, 256, 22.4), "rtx4090": (24, 384, 21), "rtx5070": (12, 192, 28), "rtx5080": (16, 256, 30),
    "rtx5090": (32, 512, 28), "rtx6000ada": (48, 384, 20),
}  # fmt: skip
STACKED = {  # GiB and GB/s, where memory is stacked on the chip
    "v100": (32, 900), "a100-40": (40, 1555), "a100-80": (80, 2039), "h100": (80, 3350), "h200": (141, 4800),
    "b200": (180, 8000), "mi300x": (192, 5300),
}  # fmt: skip
# Shader cores, GHz at most, and operations of 16-bit matrices, summed in 32 bits, for each core and clock.
CORES = {
    "t4": (2560, 1.59, 16), "v100": (5120, 1.53, 16), "a10": (9216, 1.695, 8), "l4": (7424, 2.04, 8),
    "l40s": (18176, 2.52, 8), "rtx6000ada": (18176, 2.505, 8), "a100-40": (6912, 1.41, 32), "a100-80": (6912, 1.41, 32),
    "rtx3060": (3584, 1.777, 4), "rtx3090": (10496, 1.695, 4), "rtx4060": (3072, 2.46, 4), "rtx4070": (5888, 2.475, 4),
    "rtx4080": (9728, 2.505, 4), "rtx4090": (16384, 2.52, 4), "rtx5070": (6144, 2.512, 4), "rtx5080": (10752, 2.617, 4),
    "rtx5090": (21760, 2.407, 4), "h100": (16896, 1.83, 32), "h200": (16896, 1.83, 32),
}  # fmt: skip


def test_what_their_makers_print() -> None:
    printed = STACKED | {name: (gib, round(bits * rate / 8)) for name, (gib, bits, rate) in BOARDS.items()}
    memories = {name: (each.memory / 2**30, each.bandwidth / 1e9) for name, each in GPUS.items()}
    assert memories == printed and all(name == each.name for name, each in GPUS.items())


def test_operations_follow_from_cores_and_clocks() -> None:
    for name, (cores, gigahertz, each) in CORES.items():
        assert GPUS[name].operations == pytest.approx(cores * gigahertz * 1e9 * each, rel=0.02), name
    assert GPUS.keys() - CORES.keys() == {"b200", "mi300x"}


def test_a_link_by_hand() -> None:
    """16 lanes of PCIe 3.0, 4.0 and 5.0 carry 15.75, 31.5 and 63 GB/s; a copy reaches 85 % of that."""
    for name, whole in (("t4", 15.75e9), ("rtx3060", 31.5e9), ("h100", 63e9), ("rtx4060", 15.75e9)):
        assert GPUS[name].link == pytest.approx(0.85 * whole, rel=1e-3)


def test_kernels_run_from_turing_on() -> None:
    assert {name for name, each in GPUS.items() if not each.has_kernels} == {"v100", "mi300x"}

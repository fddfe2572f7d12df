"""GPUs by the names people give them."""

from __future__ import annotations

import pytest

from moecli.errors import UsageError
from moecli.planning.gpus import GPUS, Gpu, parse_gpu


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


def test_what_their_makers_print() -> None:
    assert GPUS["h100"] == Gpu("h100", 80 * 2**30, 3350e9)
    assert GPUS["rtx4090"] == Gpu("rtx4090", 24 * 2**30, 1008e9)
    assert all(8 <= gpu.memory / 2**30 <= 192 and 200e9 < gpu.bandwidth < 9e12 for gpu in GPUS.values())

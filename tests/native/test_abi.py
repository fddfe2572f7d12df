"""The C structures and their ctypes mirrors: the same field for field, or the library is not used."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import c_int32
from pathlib import Path

import pytest

from moecli.kernels import abi, library
from tests.native.test_native_c import SOURCES, build_script

pytestmark = pytest.mark.slow

built = pytest.mark.skipif(not library.FILE.exists(), reason="the native kernels are not built")


@built
def test_every_structure_and_field_is_where_the_library_has_it() -> None:
    told = abi.layout_of(ctypes.CDLL(str(library.FILE)))
    assert told == abi.layout()
    assert {structure for structure, field in told if not field} == abi.STRUCTURES.keys()
    assert len(told) == sum(1 + len(structure._fields_) for structure in abi.STRUCTURES.values())


@built
def test_a_field_shifted_in_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ctypes.Structure):
        _fields_ = (("more", c_int32), *abi.Tokens._fields_)

    assert isinstance(library.open_library(library.FILE), library.Library)
    monkeypatch.setitem(abi.STRUCTURES, "tokens", Shifted)
    assert library.open_library(library.FILE) == "have other structures (tokens has 32 bytes at 0, not 40 bytes at 0)"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        # The size stays: what is swapped are two fields of one type.
        ("int64_t rows, first, last;", "int64_t rows, last, first;", "place.first has 8 bytes at"),
        ("int64_t rows, columns, row_stride", "int64_t more, rows, columns, row_stride", "pack has "),
        ("float norm_eps, scale;", "float norm_eps; double scale;", "latent_attention.scale has 8 bytes at"),
    ],
)
def test_a_field_shifted_in_c_is_refused(before: str, after: str, told: str, tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("no gcc")
    folder = tmp_path / "c"
    shutil.copytree(SOURCES, folder)
    header = folder / "native.h"
    text = header.read_text(encoding="utf-8")
    assert text.count(before) == 1
    header.write_text(text.replace(before, after), encoding="utf-8")
    sources = [str(folder / name) for name in ("native.c", *(source for source, _ in build_script().SCALAR.values()))]
    flags = ["-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-DMOECLI_ISAS=ISA(scalar)"]
    file = tmp_path / "shifted.so"
    subprocess.run([compiler, *flags, *sources, "-lm", "-o", str(file)], check=True)
    reason = library.open_library(file)
    assert isinstance(reason, str) and reason.startswith(f"have other structures ({told}")


def test_what_only_one_side_has_is_named() -> None:
    ours = abi.layout()
    assert abi.difference(ours) is None
    assert abi.difference({**ours, ("linear", "more"): (80, 8)}) == "linear.more has 8 bytes at 80, not missing"
    without = {place: found for place, found in ours.items() if place != ("linear", "rows")}
    assert abi.difference(without) == "linear.rows is missing, not 8 bytes at 72"

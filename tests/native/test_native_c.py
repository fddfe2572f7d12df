"""The C code under sanitisers, and on another processor where there is an emulator of it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "moecli" / "kernels" / "c"


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(folder: Path, compiler: str, machine: str, *options: str) -> Path:
    """tests/native/isas.c with all instruction sets of a machine."""
    build = build_script()
    isas = {**build.ISAS.get(machine, {}), **build.SCALAR}
    names = " ".join(f"ISA({name})" for name in isas)
    sources = {name: (SOURCES / source, flags) for name, (source, flags) in isas.items()}
    sources["native"] = SOURCES / "native.c", [f"-DMOECLI_ISAS={names}"]
    sources["main"] = Path(__file__).with_name("isas.c"), []
    commands = [
        [compiler, *build.FLAGS, *options, *flags, f"-I{SOURCES}", "-c", str(source), "-o", str(folder / f"{name}.o")]
        for name, (source, flags) in sources.items()
    ]
    for process in [subprocess.Popen(command) for command in commands]:
        assert not process.wait()
    objects = [str(folder / f"{name}.o") for name in sources]
    subprocess.run([compiler, *options, *objects, "-lm", "-o", str(folder / "program")], check=True)
    return folder / "program"


def test_under_sanitisers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if not compiler or not Path(subprocess.getoutput("gcc -print-file-name=libasan.so")).is_absolute():
        pytest.skip("no gcc with an address sanitiser")
    options = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    ran = subprocess.run(program(tmp_path, compiler, platform.machine(), *options), capture_output=True, text=True)
    assert ran.returncode == 0 and "0 failures" in ran.stdout, ran.stdout + ran.stderr


def test_on_arm(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip("no compiler and emulator for another processor")
    command = [emulator, program(tmp_path, compiler, "aarch64", "-static")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.split() == ["neon", "scalar", "0", "failures"], ran.stdout + ran.stderr

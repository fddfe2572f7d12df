"""`moecli doctor` as a process: on this machine, with broken settings, broken libraries, and no compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import moecli as package
from moecli.formats import FORMATS
from moecli.kernels import library
from moecli.kernels.library import open_library

PACKAGE = Path(package.__file__).parent
KERNEL = "_native.so"
TOKEN = "hf_thisMustNeverBeSeen"
SECTIONS = {
    "schema_version", "software", "processor", "kernels", "memory", "graphics", "disks", "hub_cache", "packed",
    "built_in", "environment", "presets", "problems",
}  # fmt: skip


def wrong(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("problem: ")]


@pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
def test_this_machine(moecli, tmp_path):
    result = moecli("doctor", "--json", HF_TOKEN=TOKEN, HF_ENDPOINT=f"https://me:{TOKEN}@hub.example")
    assert TOKEN not in result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found.keys() == SECTIONS and found["schema_version"] == 1
    assert [problem["what"] for problem in found["problems"] if "nearly full" not in problem["what"]] == []
    assert result.returncode == (1 if found["problems"] else 0) and result.stderr == ""
    assert found["software"]["libraries"]["torch"]["version"] == torch.__version__
    assert found["kernels"]["formats"]["cpu"] == dict.fromkeys(FORMATS, "native")
    assert found["kernels"]["isa"] == library.isas()[0] and found["kernels"]["openmp"]
    assert found["processor"]["threads"] == 1 and found["processor"]["threads_asked"] == "1"
    assert 0 < found["built_in"]["takes_bytes"] < found["memory"]["budget_bytes"] <= found["memory"]["total_bytes"]
    assert found["memory"]["read_bytes_per_s"] > 1e8
    assert found["environment"].items() >= {"HF_TOKEN": "set", "MOECLI_HOME": str(tmp_path / "moecli")}.items()
    (disk,) = found["disks"]
    assert [folder["path"] for folder in disk["folders"]] == [str(tmp_path / "moecli/models"), str(tmp_path / "hf/hub")]
    assert disk["not_measured"] or disk["read_bytes_per_s"] > 1e6
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["bandwidths.json"]  # for forecasts to come


def test_everything_is_shown_and_each_fault_is_one_line(moecli, tmp_path):
    file = tmp_path / "file"
    file.touch()
    broken = {"MOECLI_THREADS": "many", "MOECLI_KERNEL": "abacus", "HF_HUB_CACHE": str(file), "HF_TOKEN": TOKEN}
    result = moecli("doctor", MOECLI_HOME=str(file / "home"), **broken)
    assert result.returncode == 1 and result.stderr == "" and TOKEN not in result.stdout
    lines = wrong(result.stdout)
    folders = f"HF_HUB_CACHE is '{file}', which is no folder", f"{file}/home/models cannot be read: Not a directory"
    for text in ("MOECLI_THREADS is 'many'", "MOECLI_KERNEL is 'abacus'", *folders):
        assert sum(text in line for line in lines) == 1, text
    assert all("; hint: " in line and not line.endswith("hint: ") for line in lines)
    for label in ("libraries", "processor", "cores", "memory", "GPU", "disk", "models", "environment"):
        assert any(line.startswith(label) for line in result.stdout.splitlines()), label


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="nothing here refuses everybody, root too")
def test_a_home_that_cannot_be_written_or_told(moecli, tmp_path):
    result = moecli("doctor", "--quiet", MOECLI_HOME="/proc/moecli", HF_HOME="~nobody.is.called.so")
    assert result.returncode == 1 and result.stderr == ""
    lines = wrong(result.stdout)
    assert sum("packed models cannot be written to /proc/moecli/models: /proc: " in line for line in lines) == 1
    assert (
        sum(
            line.startswith("problem: Hub cache: HF_HOME is '~nobody.is.called.so': nobody here has that home folder;")
            for line in lines
        )
        == 1
    )


def test_torch_that_is_old_and_broken(moecli, tmp_path):
    (tmp_path / "lib/torch").mkdir(parents=True)
    (tmp_path / "lib/torch/__init__.py").write_text("raise OSError('libcudart.so.12: no such file')")
    (tmp_path / "lib/torch-1.9.dist-info").mkdir()
    (tmp_path / "lib/torch-1.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.9\n")
    result = moecli("doctor", "--quiet", PYTHONPATH=str(tmp_path / "lib"))
    assert result.returncode == 1 and result.stderr == ""
    old, broken = wrong(result.stdout)[:2]
    assert old.startswith("problem: torch 1.9 is older than 2.") and "pip install --upgrade 'torch>=" in old
    assert broken.startswith("problem: torch cannot be imported: libcudart.so.12: no such file; hint: pip install")
    found = json.loads(moecli("doctor", "--json", PYTHONPATH=str(tmp_path / "lib")).stdout)
    assert found["kernels"] is None and found["memory"]["not_measured"] and found["processor"]["threads"] == 1


@pytest.mark.parametrize("shell", ["head -1", "true"])
def test_a_reader_that_goes_away(command, environment, tmp_path, shell):
    (tmp_path / "torch.py").write_text("raise ImportError('no time for it')")
    script = f"""'{command[0]}' -c '{command[2]}' doctor | {shell}"""
    result = subprocess.run(
        ["sh", "-c", script], env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.stderr == "" and len(result.stdout.splitlines()) == (shell != "true")


def doctor(folder: Path, environment: dict[str, str], **more: str) -> list[str]:
    """What is wrong with native kernels, says the package that lies in `folder`."""
    command = [sys.executable, "-m", "moecli", "doctor", "--quiet"]
    environment = environment | {"PYTHONPATH": str(folder)} | more
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr == ""
    return [line for line in wrong(result.stdout) if "native" in line or "compiler" in line]


def test_installed_without_a_compiler_it_says_so_in_one_line(environment, tmp_path):
    """A real build with nothing on the PATH: the installation is whole, and torch computes."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pip")
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source / "moecli", ignore=shutil.ignore_patterns(KERNEL, "__pycache__"))
    (source / "docs").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "docs/moecli.1"):
        shutil.copy(PACKAGE.parent / name, source / name)
    bare = {"PATH": str(tmp_path / "nothing")}
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--quiet", "--target", str(site)]
    install = [sys.executable, "-m", "pip", "install", *options, str(source)]
    subprocess.run(install, env=os.environ | bare, cwd=tmp_path, check=True, timeout=120)
    assert not list(site.glob("**/*.so"))
    (line,) = doctor(site, environment, **bare)
    assert "the native kernels were not built: torch decodes packed models several times slower" in line
    assert "hint: install a C compiler such as gcc, then reinstall moecli" in line
    if compiler := shutil.which("cc"):
        (tmp_path / "other.c").write_text("int moecli_version(void) { return 0; }")
        library = site / "moecli/kernels" / KERNEL
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "other.c"], check=True)
        (line,) = doctor(site, environment)
        assert "the native kernels are those of another version: torch decodes" in line
        assert "; hint: reinstall moecli" in line


@pytest.mark.skipif(not library.isas(), reason="the native kernels are not built")
def test_an_instruction_set_that_is_not_here(moecli):
    result = moecli("doctor", "--json", MOECLI_ISA="abacus")
    found = json.loads(result.stdout)
    assert result.returncode == 1 and {"isa": None, "isas": list(library.isas())}.items() <= found["kernels"].items()
    assert "MOECLI_ISA is 'abacus'" in [problem["what"] for problem in found["problems"]]
    result = moecli("run", "tiny", "--dtype", "q4", "-n", "1", "The sea", MOECLI_ISA="abacus")
    assert result.returncode == 2 and result.stdout == ""
    assert f"hint: the instruction sets here: {', '.join(library.isas())}" in result.stderr


def test_why_a_library_is_not_used(tmp_path):
    (tmp_path / "text.so").write_text("no library")
    assert open_library(tmp_path / "none.so") == "were not built"
    assert open_library(tmp_path / "text.so").startswith("cannot be loaded (")

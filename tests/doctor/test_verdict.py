"""What counts as wrong, rule by rule, on this machine's findings with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moecli.doctor import disks, graphics, kernels, libraries, memory, models, processor
from moecli.doctor.examination import Examination
from moecli.doctor.verdict import problems

GIB = 2**30
CPU = {"q4": "native", "bf16": "native", "nf4": "torch"}
FOLDERS = (
    disks.Folder("packed models", Path("/data/moecli/models"), None),
    disks.Folder("Hub cache", Path("/data/hub"), None),
)
GOOD = Examination(
    software=libraries.Software(
        "0.1.0", "3.11.7", "Linux", {"torch": libraries.Library("2.13.0+cpu", "2.6")}, "CPU", None
    ),
    processor=processor.Processor("A processor", "x86_64", ("avx2",), 4, 8, 8, None, 4, None, None),
    kernels=kernels.Kernels({"cpu": CPU}, None, None, "avx2", ("avx2", "scalar"), True, None, "/usr/bin/cc"),
    memory=memory.Memory(16 * GIB, 12 * GIB, None, 11 * GIB, 0, 0, 20e9, None),
    graphics=graphics.Graphics((), "torch finds none"),
    disks=(disks.Disk(FOLDERS, "ext4", 500 * GIB, 100 * GIB, True, 1e9, None, None),),
    hub_cache=models.Held(),
    packed=models.Held(),
    built_in=models.BuiltIn(400 * 2**20, True, None),
    environment={},
)


def changed(part: str, **fields: object) -> list[str]:
    """What is wrong once these fields of a part of a machine in order have changed."""
    part_of = getattr(GOOD, part)
    found = problems(replace(GOOD, **{part: replace(part_of, **fields)}))
    return [f"{problem.what}; {problem.hint}" for problem in found]


def test_a_machine_in_order_has_no_problem() -> None:
    assert list(problems(GOOD)) == []


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        ("software", {"libraries": {"torch": libraries.Library("2.5.1", "2.6")}}, "torch 2.5.1 is older than 2.6"),
        ("software", {"libraries": {"torch": libraries.Library(None, "2.6")}}, "torch is not installed"),
        ("software", {"torch_failure": "no libcudart.so.12"}, "cannot be imported: no libcudart.so.12"),
        ("processor", {"threads": 9, "threads_asked": "9"}, "unset MOECLI_THREADS, or set it to at most 8"),
        ("processor", {"usable_cores": 2, "cpu_quota": 1.5}, "set MOECLI_THREADS to 2"),
        ("kernels", {"absence": "were not built"}, "several times slower; reinstall moecli"),
        ("kernels", {"absence": "were not built", "compiler": None}, "install a C compiler such as gcc"),
        ("kernels", {"openmp": False}, "compute with one thread"),
        ("graphics", {"gpus": (graphics.Gpu("A card", GIB, None, "8.9", "out of memory"),)}, "out of memory; --device"),
        ("built_in", {"fits": False}, "takes 400 MiB of memory, 11 GiB may be used"),
        ("built_in", {"failure": "model.safetensors is cut short"}, "is cut short; reinstall moecli"),
        ("hub_cache", {"failure": "no"}, "Hub cache: no; make it readable, or set HF_HOME or HF_HUB_CACHE to"),
        ("packed", {"failure": "no"}, "packed models: no; make it readable, or set MOECLI_HOME"),
    ],
)
def test_each_fault_is_one_problem(part: str, fields: dict[str, object], words: str) -> None:
    (found,) = changed(part, **fields)
    assert words in found


def test_faults_of_a_disk() -> None:
    disk = GOOD.disks[0]
    full = list(problems(replace(GOOD, disks=(replace(disk, free_bytes=GIB),))))
    assert [problem.what for problem in full] == ["the disk of /data/moecli/models is nearly full: 1 GiB free"]
    closed = tuple(replace(folder, obstacle="/data: Read-only file system") for folder in FOLDERS)
    (problem,) = problems(replace(GOOD, disks=(replace(disk, folders=closed),)))
    assert problem.what.startswith("packed models cannot be written to /data/moecli/models: /data: Read-only")
    unreadable = replace(GOOD, disks=(replace(disk, folders=closed),), packed=models.Held(failure="no"))
    assert len(list(problems(unreadable))) == 1


def test_without_torch_the_rest_is_judged() -> None:
    software = replace(GOOD.software, torch_failure="gone", libraries={"torch": libraries.Library(None, "2.6")})
    assert [problem.what for problem in problems(replace(GOOD, software=software, kernels=None))] == [
        "torch is not installed"
    ]


@pytest.mark.parametrize(
    ("version", "least", "outdated"),
    [
        ("2.6.0", "2.6", False), ("2.13.0+cpu", "2.6", False), ("14", "14.0", False), ("3.1.6", "3.1.6", False),
        ("2.10", "2.9", False), ("2.5.9", "2.6", True), ("2.6", "2.6.1", True), ("0.9", "1.0", True),
    ],
)  # fmt: skip
def test_versions_compare_as_numbers(version: str, least: str, outdated: bool) -> None:
    assert libraries.Library(version, least).outdated is outdated

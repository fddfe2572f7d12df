"""Limits of control groups, as both versions of the kernel's files tell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecli.planning import cgroups


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "membership"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_the_tightest_of_a_group_and_its_parents_counts(membership: Path, root: Path) -> None:
    membership.write_text("0::/box/job\n")
    lay(
        root,
        {
            "cpu.max": "max 100000\n",
            "box/cpu.max": "150000 100000\n",
            "box/job/cpu.max": "400000 100000\n",
            "box/memory.max": "1000\n", "box/memory.current": "900\n", "box/memory.stat": "anon 5\ninactive_file 300\n",
            "box/job/memory.max": "max\n", "box/job/memory.current": "10\n", "box/job/memory.stat": "",
        },
    )  # fmt: skip
    assert cgroups.cpu_quota(membership, root) == 1.5
    assert cgroups.memory_limit(membership, root) == 1000
    assert cgroups.memory_room(membership, root) == 400


def test_version_one(membership: Path, root: Path) -> None:
    membership.write_text("4:memory:/job\n2:cpu,cpuacct:/job\n1:name=systemd:/\n")
    lay(
        root,
        {
            "cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
            "memory/job/memory.limit_in_bytes": "500\n", "memory/job/memory.usage_in_bytes": "700\n",
            "memory/job/memory.stat": "inactive_file 0\n",
            "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n", "memory/memory.usage_in_bytes": "9\n",
            "memory/memory.stat": "",
        },
    )  # fmt: skip
    assert cgroups.cpu_quota(membership, root) == 0.5
    assert cgroups.memory_limit(membership, root) == 500
    assert cgroups.memory_room(membership, root) == 0


@pytest.mark.parametrize("text", [None, "", "0::/nowhere\n", "4:memory:/nowhere\n"])
def test_no_limit(membership: Path, root: Path, text: str | None) -> None:
    if text is not None:
        membership.write_text(text)
    assert cgroups.cpu_quota(membership, root) is None
    assert cgroups.memory_limit(membership, root) is cgroups.memory_room(membership, root) is None

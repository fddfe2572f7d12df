"""Limits of control groups, as both versions of the kernel's files tell them."""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from pathlib import Path

import psutil
import pytest

from moecli.planning import cgroups, machine


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


Group = namedtuple("Group", "limit used idle", defaults=("0", "0"))  # bytes; idle: file pages not in use


def lay_memory(version: int, membership: Path, root: Path, groups: list[Group]) -> None:
    """Groups within one another, the outermost first; the process is in the last."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    path = ""
    for number, group in enumerate(groups):
        path += f"/g{number}" if number else ""
        folder = (root if version == 2 else root / "memory") / path.lstrip("/")
        stat = f"anon 7\ninactive_anon 900000\ninactive_file {group.idle}\nactive_file 900000\n"
        lay(folder, {names[0]: f"{group.limit}\n", names[1]: f"{group.used}\n", "memory.stat": stat})
    membership.write_text(f"0::{path}\n" if version == 2 else f"9:pids:/else\n4:memory:{path}\n0::/else\n")


NESTED = {
    "its own": ([Group("9000"), Group("8000"), Group("1000", "100")], 1000, 900),
    "its parent's": ([Group("9000"), Group("1000", "100"), Group("8000", "100")], 1000, 900),
    "the outermost": ([Group("1000", "100"), Group("9000"), Group("8000", "100")], 1000, 900),
    "one that others share is fuller": ([Group("9000"), Group("5000", "4900"), Group("1000", "100")], 1000, 100),
    "its own is fuller": ([Group("9000", "500"), Group("5000", "500"), Group("6000", "5950")], 5000, 50),
    "file pages make room": ([Group("5000", "4900", "4000"), Group("1000", "900", "200")], 1000, 300),
    "beyond its limit": ([Group("5000", "4900"), Group("1000", "1300")], 1000, 0),
    "four of them": ([Group("9000"), Group("4000"), Group("2000", "600"), Group("3000", "500")], 2000, 1400),
    "the same twice": ([Group("2000", "600"), Group("2000", "500")], 2000, 1400),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("groups", "limit", "room"), NESTED.values(), ids=NESTED.keys())
def test_of_nested_limits_the_tightest_counts(version, groups, limit, room, membership: Path, root: Path) -> None:
    lay_memory(version, membership, root, groups)
    assert cgroups.memory_limit(membership, root) == limit
    assert cgroups.memory_room(membership, root) == room


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_without_a_limit_between_two_with_one(version: int, membership: Path, root: Path) -> None:
    none = Group("max" if version == 2 else str(2**63 - 4096), "100")
    lay_memory(version, membership, root, [none, Group("3000", "1000"), none, Group("4000", "500"), none])
    assert cgroups.memory_limit(membership, root) == 3000
    assert cgroups.memory_room(membership, root) == 2000


@pytest.mark.parametrize("text", ["", "words\n", "-5\n", "12 13\n"])
def test_a_limit_that_cannot_be_read_hides_no_other(text: str, membership: Path, root: Path) -> None:
    lay_memory(2, membership, root, [Group("7000"), Group("3000", "1000"), Group("4000", "500")])
    (root / "g1/memory.max").write_text(text)
    assert cgroups.memory_limit(membership, root) == 4000
    assert cgroups.memory_room(membership, root) == 3500
    (root / "g1/memory.current").unlink()
    assert cgroups.memory_limit(membership, root) == 4000


def test_groups_within_one_that_cannot_be_read_hide_no_parent(membership: Path, root: Path) -> None:
    lay_memory(2, membership, root, [Group("7000"), Group("3000", "1000"), Group("2000", "500")])
    (root / "g1/g2/memory.current").unlink()
    assert cgroups.memory_limit(membership, root) == 3000
    assert cgroups.memory_room(membership, root) == 2000


def test_statistics_without_a_word_of_file_pages(membership: Path, root: Path) -> None:
    lay_memory(2, membership, root, [Group("3000", "1000")])
    (root / "memory.stat").write_text("anon 7\n")
    assert cgroups.memory_room(membership, root) == 2000


def test_a_colon_in_the_name_of_a_group(membership: Path, root: Path) -> None:
    membership.write_text("0::/pod:one/job:two\n")
    lay(root, {"pod:one/job:two/cpu.max": "150000 100000\n"})
    assert cgroups.cpu_quota(membership, root) == 1.5


@pytest.mark.parametrize(
    "quotas", [("300000", "150000", "200000"), ("150000", "max", "200000"), ("max", "max", "150000")]
)
def test_of_nested_quotas_the_tightest_counts(quotas: tuple[str, ...], membership: Path, root: Path) -> None:
    for folder, quota in zip((root, root / "a", root / "a/b"), quotas, strict=True):
        lay(folder, {"cpu.max": f"{quota} 100000\n"})
        lay(root / "cpu,cpuacct" / folder.relative_to(root), {
            "cpu.cfs_quota_us": f"{-1 if quota == 'max' else quota}\n", "cpu.cfs_period_us": "100000\n",
        })  # fmt: skip
    membership.write_text("0::/a/b\n")
    assert cgroups.cpu_quota(membership, root) == 1.5
    (root / "cpu").symlink_to("cpu,cpuacct")
    membership.write_text("3:cpu,cpuacct:/a/b\n")
    assert cgroups.cpu_quota(membership, root) == 1.5


@pytest.mark.parametrize("text", [None, "", "words", "100000", "1 2 3"])
def test_a_quota_that_cannot_be_read_hides_no_parent(text: str | None, membership: Path, root: Path) -> None:
    membership.write_text("0::/a/b/c\n")
    lay(root, {"a/cpu.max": "150000 100000\n", "a/b/c/cpu.max": "400000 100000\n"})
    for group in ("a/b", "a/b/c"):
        (root / group / "cpu.max").unlink(missing_ok=True)
        if text is not None:
            lay(root, {f"{group}/cpu.max": f"{text}\n"})
        assert cgroups.cpu_quota(membership, root) == 1.5


def test_quotas_of_different_periods_are_compared_as_time(membership: Path, root: Path) -> None:
    membership.write_text("0::/a\n")
    lay(root, {"cpu.max": "100000 50000\n", "a/cpu.max": "150000 100000\n"})
    assert cgroups.cpu_quota(membership, root) == 1.5


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, membership: Path, root: Path) -> None:
    """This process is in the groups that lie there."""
    for name in ("memory_limit", "memory_room", "cpu_quota"):
        monkeypatch.setattr(cgroups, name, partial(getattr(cgroups, name), membership, root))


def test_free_memory_is_what_a_group_leaves(inside: None, membership: Path, root: Path) -> None:
    """Less a margin of 256 MiB, or 5 %, and more by what the process has already."""
    own = psutil.Process().memory_info().rss
    gib, mib = 2**30, 2**20
    lay_memory(2, membership, root, [Group(str(3 * gib), str(gib)), Group(str(2 * gib), str(gib))])
    assert machine.free_ram() - own == pytest.approx(768 * mib, abs=64 * mib)
    lay_memory(2, membership, root, [Group(str(3 * gib), str(3 * gib - 100 * mib)), Group(str(2 * gib), str(gib))])
    assert machine.free_ram() - own == pytest.approx(0, abs=64 * mib)
    lay_memory(2, membership, root, [Group(str(2**50))])  # more than any machine has
    there = psutil.virtual_memory().available
    assert machine.free_ram() - own == pytest.approx(there - max(256 * mib, there / 20), abs=512 * mib)


def test_threads_are_no_more_than_the_quota(inside: None, membership: Path, root: Path) -> None:
    membership.write_text("0::/a\n")
    cores = psutil.cpu_count(logical=False) or 1
    for quota, threads in (("50000", 1), ("100000", 1), ("110000", min(2, cores)), ("max", machine.compute_threads())):
        lay(root, {"cpu.max": "max 100000\n", "a/cpu.max": f"{quota} 100000\n"})
        assert machine.compute_threads() == threads

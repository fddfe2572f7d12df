"""What control groups allow this process: memory and processor time, by cgroup v2 or v1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 2**60  # cgroup v1 writes a huge number where there is none
_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def memory_limit(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> int | None:
    """The tightest limit, in bytes; None without one."""
    return min((limit for limit, _, _ in _memory(membership, root)), default=None)


def memory_room(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> int | None:
    """What is left below the tightest limit, in bytes; None without one. File pages not in use count as free."""
    rooms = (limit - usage + inactive for limit, usage, inactive in _memory(membership, root))
    room = min(rooms, default=None)
    return None if room is None else max(0, room)


def cpu_quota(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float | None:
    """Processors' worth of time this process may use; None without a limit."""
    quotas = []
    for folder, unified in _folders("cpu", membership, root):
        files = ("cpu.max",) if unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory(membership: Path, root: Path) -> Iterator[tuple[int, int, int]]:
    """Each limit with what is used of it, and what of that is file pages not in use."""
    for folder, unified in _folders("memory", membership, root):
        names = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        try:
            limit, usage = (folder / names[0]).read_text().strip(), int((folder / names[1]).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < _NO_LIMIT:
            yield int(limit), usage, int(statistics.get("inactive_file", 0))


def _folders(controller: str, membership: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """This process's cgroup and each of its parents, and whether it is one of v2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        here = top / path.lstrip("/")
        for folder in (here, *(parent for parent in here.parents if parent.is_relative_to(top))):
            yield folder, not controllers

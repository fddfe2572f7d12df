"""The disks that models lie on: room, file system, whether they can be written, how fast they read."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from moecli import settings
from moecli.doctor import reading
from moecli.errors import MoecliError
from moecli.hub import cache as hub_cache
from moecli.library.stores import LocalStore
from moecli.store.filesystem import nearest_folder

ROOM = 8 * reading.SAMPLE  # below this free a disk counts as full, and nothing is written to it


PACKED = "packed models"  # the purpose of the folder that they lie in


@dataclass(frozen=True, slots=True)
class Folder:
    """Where models lie, or would. `obstacle` is why nothing can be written there."""

    purpose: str
    path: Path
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class Disk:
    """What one file system offers to the folders on it."""

    folders: tuple[Folder, ...]
    file_system: str | None
    total_bytes: int
    free_bytes: int
    direct_io: bool | None
    read_bytes_per_s: float | None
    measured_on: str | None  # the packed store, or None for a file written for it
    not_measured: str | None  # why


def look(stores: Sequence[LocalStore], refusal: str | None) -> tuple[Disk, ...]:
    """Measured on the largest of the complete `stores` on each, unless there is a reason not to measure."""
    by_disk: dict[int, list[Folder]] = {}
    for folder in _folders():
        by_disk.setdefault(nearest_folder(folder.path).stat().st_dev, []).append(folder)
    return tuple(_disk(tuple(folders), stores, refusal) for folders in by_disk.values())


def _folders() -> Iterator[Folder]:
    """Those that can be told: some are in a home folder that may be unknown."""
    for purpose, find in ((PACKED, settings.stores), ("Hub cache", settings.hub_cache)):
        with contextlib.suppress(MoecliError):
            path = find().absolute()
            yield Folder(purpose, path, _obstacle(path))


def _disk(folders: tuple[Folder, ...], stores: Sequence[LocalStore], refusal: str | None) -> Disk:
    place = nearest_folder(folders[0].path)
    usage = shutil.disk_usage(place)
    store = max((store for store in stores if _suits(store, place)), key=lambda store: store.bytes, default=None)
    if refusal:
        found = reading.Reading(None, None, refusal)
    elif store:
        found = reading.read_store(store.path)
    else:
        found = _read_new_file(folders, usage.free)
    return Disk(
        folders=folders,
        file_system=_file_system(place),
        total_bytes=usage.total,
        free_bytes=usage.free,
        direct_io=found.direct,
        read_bytes_per_s=found.bytes_per_s,
        measured_on=store.name if store and found.bytes_per_s else None,
        not_measured=found.failure,
    )


def _suits(store: LocalStore, place: Path) -> bool:
    """On this disk, and large enough to tell something of it."""
    return store.bytes >= reading.SAMPLE and store.path.stat().st_dev == place.stat().st_dev


def _read_new_file(folders: Sequence[Folder], free: int) -> reading.Reading:
    writable = next((folder for folder in folders if folder.obstacle is None), None)
    if writable is None:
        return reading.Reading(None, None, folders[0].obstacle)
    if free < ROOM:
        return reading.Reading(None, None, "the disk is nearly full")
    return reading.read_new_file(nearest_folder(writable.path))


def _obstacle(path: Path) -> str | None:
    """Try it: permissions do not tell of a disk that is mounted read-only."""
    nearest = next(each for each in (path, *path.parents) if hub_cache.status(each))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return f"{nearest}: {error.strerror}"


def _file_system(path: Path) -> str | None:
    """That of the mount point nearest above; of several on one point the last holds."""
    real = path.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if real.is_relative_to(mount.mountpoint)]
    return max(reversed(mounts), key=lambda mount: len(mount.mountpoint)).fstype if mounts else None

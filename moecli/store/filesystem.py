"""The disk under a path: what is free on it, files written whole or not at all, and its failures in words."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from moecli.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAGE = 4096
_MOST_LINKS = 40  # as the kernel follows


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the closest above it that is there; what cannot be looked at is not."""
    for each in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            if each.is_dir():
                return each
    return Path()


def free_space(path: Path) -> int:
    """Free bytes where the folder is or would be."""
    return shutil.disk_usage(nearest_folder(path)).free


def unwritable(path: Path, error: OSError) -> DiskError:
    """What the system says of a file or folder that cannot be written."""
    return DiskError(f"{error.filename or path} cannot be written: {error.strerror or error}")


def write(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file that a user named. A regular one is whole or as it was, whatever stops us, and no other is left.

    Links are followed, and what is there keeps its owner and permissions; where a new file cannot have these, or cannot
    be made beside it, it is written into. So are devices, pipes, and the open files that `-`, /dev/stdout or /dev/fd/3
    stand for. DiskError explains what cannot be written; BrokenPipeError says that a reader has gone.
    """
    try:
        status, target = _status(path), Path(os.path.realpath(path))
        if (descriptor := _descriptor(path)) is not None:
            _fill(os.fdopen(os.dup(descriptor), "wb"), parts)
        elif status is not None and not stat.S_ISREG(status.st_mode):
            _fill(path.open("wb"), parts)
        elif (new := _new_beside(target, status)) is None:
            _fill(target.open("wb"), parts)
        else:
            _replace(target, new, parts)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refusal(path, error) from error


def check_writable(path: Path) -> None:
    """DiskError if it is known before that `write` will fail. Leaves nothing, and waits for no reader of a pipe."""
    try:
        if (descriptor := _descriptor(path)) is not None:
            os.write(descriptor, b"")
        elif (status := _status(path)) is None:
            if (new := _new_beside(Path(os.path.realpath(path)), None)) is not None:
                new.unlink()
        elif stat.S_ISREG(status.st_mode):
            os.close(os.open(path, os.O_WRONLY))
        elif stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> DiskError:
    hint = "free some space, or name a file on another disk" if error.errno in FULL else "name another file"
    return DiskError(f"{path} cannot be written: {error.strerror or error}", hint)


def _descriptor(path: Path) -> int | None:
    """The open file that `-`, /dev/stdout or /dev/fd/3 stand for; None for any other path."""
    if str(path) == "-":
        return 1
    for _ in range(_MOST_LINKS):
        if path.name.isdecimal() and os.path.realpath(path.parent) == os.path.realpath("/dev/fd"):
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _status(path: Path) -> os.stat_result | None:
    """What is there; None if nothing is."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _replace(path: Path, new: Path, parts: Iterable[bytes]) -> None:
    """The new file is filled, and takes the place of what is there once it is on the disk."""
    try:
        _fill(new.open("wb"), parts, sync=True)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _new_beside(path: Path, status: os.stat_result | None) -> Path | None:
    """An empty file in the same folder, with owner and permissions of what is to be replaced, where this has a status.

    None if there can be no such file, and what is there can be written.
    """
    new = path.with_name(f".moecli-{os.urandom(8).hex()}")
    if status is None:
        new.touch(exist_ok=False)
        return new
    os.close(os.open(path, os.O_WRONLY))
    if status.st_dev != path.parent.stat().st_dev:  # mounted there by itself
        return None
    try:
        new.touch(exist_ok=False)
        if hasattr(os, "chown"):
            os.chown(new, status.st_uid, status.st_gid)
        shutil.copystat(path, new)
    except OSError as error:
        new.unlink(missing_ok=True)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None
        raise
    return new


def _fill(file: BinaryIO, parts: Iterable[bytes], sync: bool = False) -> None:
    with file:
        file.writelines(parts)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def reads_directly(path: Path) -> bool:
    """Whether a page of this file can be read past the page cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):  # the constant is Linux's
        return False
    try:
        return os.preadv(descriptor, [mmap.mmap(-1, _PAGE)], 0) > 0
    except OSError:
        return False
    finally:
        os.close(descriptor)

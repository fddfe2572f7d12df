"""The disk under a path: what is free on it, whether it reads past the page cache, and its failures in words."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path

from moecli.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAGE = 4096


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the closest above it that is there."""
    return next((each for each in (path, *path.absolute().parents) if each.is_dir()), Path())


def free_space(path: Path) -> int:
    """Free bytes where the folder is or would be."""
    return shutil.disk_usage(nearest_folder(path)).free


def unwritable(path: Path, error: OSError) -> DiskError:
    """What the system says of a file or folder that cannot be written."""
    return DiskError(f"{error.filename or path} cannot be written: {error.strerror or error}")


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

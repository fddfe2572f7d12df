"""Deleting a store: it loses its name first, so that what a kill leaves is no model, and easily found again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from moecli.errors import DiskError
from moecli.store import journal, manifest
from moecli.store.journal import explained, locked, sync_folder
from moecli.store.packed import PARTIAL, REMOVED, is_partial, is_removed
from moecli.text.files import is_text

GROWING = ".growing"  # the suffix of a shard's left-over that is not whole
_SUFFIXES = (".safetensors", GROWING, ".incomplete")  # the last is a shard's that pull was fetching


def leftover(folder: Path) -> Path:
    """Where a store lies while it is deleted."""
    return folder if is_removed(folder) else folder.with_name(folder.name.removesuffix(PARTIAL) + REMOVED)


def remove(folder: Path) -> None:
    """Delete a store, finished or not, and what an earlier removal of it left. DiskError if it holds anything else."""
    going = leftover(folder)
    if going != folder:
        _refuse_strangers(folder)
        finish_removal(going)
        with explained(folder), locked(folder) if is_partial(folder) else contextlib.nullcontext():
            folder.rename(going)
            sync_folder(folder.parent)
    finish_removal(going)


def finish_removal(going: Path) -> None:
    """Delete what is left of a store that was being deleted, if there is any."""
    with explained(going):
        if not going.is_dir():
            return
        _refuse_strangers(going)
        shutil.rmtree(going)
        sync_folder(going.parent)


def _refuse_strangers(folder: Path) -> None:
    with explained(folder):
        strangers = sorted(file.name for file in folder.iterdir() if not _is_ours(file))
    if strangers:
        raise DiskError(f"{folder} holds '{strangers[0]}', which moecli did not put there", "move it away first")


def _is_ours(file: Path) -> bool:
    named = is_text(file.name) or file.name in (manifest.FILE, journal.FILE, journal.LOCK) or file.suffix in _SUFFIXES
    return named and file.is_file() and not file.is_symlink()

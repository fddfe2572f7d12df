"""A GGUF file as a model folder: what it says of its model written out once, beside a note of where it lies."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from moecli import __version__, settings
from moecli.checkpoint import gguf
from moecli.errors import MoecliError, reading
from moecli.model.gguf import config_of
from moecli.store.filesystem import unwritable
from moecli.text.gguf import texts_of


def unfolded(path: Path) -> Path:
    """The folder of a GGUF file: config.json, its tokenizer, and a note of the file, which stays where it is.

    It is made anew when the file changes. CheckpointError or ConfigError for a file that is not read, DiskError where
    the folder cannot be written.
    """
    path = path.absolute()
    with reading(path):
        status = path.stat()
    known = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{__version__}"
    key = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    folder = settings.gguf() / f"{path.stem[:80]}-{key}"
    if not (folder / gguf.NOTE).is_file():
        model = gguf.read_model(path)
        config = config_of(model.metadata, model.shapes)
        note = {"file": os.fsencode(path).decode("utf-8", "surrogateescape")}
        texts = texts_of(model.metadata) | {
            "config.json": json.dumps(config, indent=1).encode(), gguf.NOTE: json.dumps(note).encode(),
        }  # fmt: skip
        _write(folder, texts)
        _forget_older(folder, path)
    return folder


def _forget_older(folder: Path, path: Path) -> None:
    """What the same file said before it changed."""
    for other in folder.parent.glob(f"{glob.escape(path.stem[:80])}-*"):
        with suppress(MoecliError, OSError):
            if other != folder and len(other.name) == len(folder.name) and gguf.noted_file(other) == path:
                shutil.rmtree(other)


def _write(folder: Path, texts: dict[str, bytes]) -> None:
    """All files or none; another process may be at it."""
    growing = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        growing.mkdir(parents=True, exist_ok=True)
        for name, content in texts.items():
            (growing / name).write_bytes(content)
        if folder.is_dir():
            shutil.rmtree(growing)
        else:
            growing.replace(folder)
    except OSError as error:
        shutil.rmtree(growing, ignore_errors=True)
        if not (folder / gguf.NOTE).is_file():
            raise unwritable(folder, error) from error

"""The checkpoint a store is packed from: opened by its files or by its headers alone, and known again later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from moecli.checkpoint.binding import Weights, input_widths
from moecli.checkpoint.decoding import decoded
from moecli.checkpoint.files import SAFETENSORS
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.gguf import noted_file
from moecli.checkpoint.stored import StoredTensor
from moecli.checkpoint.towers import split_towers
from moecli.errors import CheckpointError, ConfigError, reading
from moecli.formats import stored_as
from moecli.model import families
from moecli.model.spec import ModelSpec
from moecli.store import manifest
from moecli.store.manifest import Origin
from moecli.text.files import texts_in


def open_source(folder: Path) -> Weights:
    """A checkpoint that can be run. ConfigError or CheckpointError if it cannot, or is a packed store."""
    with reading(folder):
        if (folder / manifest.FILE).is_file():
            raise CheckpointError(
                f"{folder} is packed already, to {manifest.read(folder).dtype}",
                "to have another format, pack the checkpoint it was made from",
            )
        config = families.load_config(folder / "config.json")
        return _bind(str(folder), config, lambda: Checkpoint.open(folder), here=True).with_true_ties()


def announced(name: str, config: Mapping[str, Any], tensors: Callable[[], Mapping[str, StoredTensor]]) -> Weights:
    """A checkpoint that is not here yet. `tensors`, what its headers say, is asked once the config is fit."""
    return _bind(name, config, lambda: Checkpoint(tensors()))


def origin_of(
    name: str, repo: str | None, revision: str | None, folder: Path, weights: Weights, tokenizer: Path | None = None
) -> Origin:
    """What a store says of a checkpoint on this machine; `revision` is a commit of `repo`.

    `tokenizer`: a file or folder that has the tokenizer instead of the checkpoint.
    """
    path = None if repo else _text(str((noted_file(folder) or folder).resolve()))
    return Origin(_text(name), repo, revision, path, fingerprint(folder, weights, tokenizer))


def _text(name: str) -> str:
    """A name on the disk that is not UTF-8 cannot be written as text: its bytes by their numbers."""
    return name.encode("utf-8", "backslashreplace").decode()


def fingerprint(folder: Path, weights: Weights, tokenizer: Path | None = None) -> str:
    """Changes when a file of a checkpoint does: names, sizes, times and headers of its weights, and all its texts."""
    found = hashlib.sha256()
    tensors: dict[Path, list[StoredTensor]] = {}
    for tensor in weights.checkpoint.tensors.values():
        tensors.setdefault(tensor.path, []).append(tensor)
    with reading(folder):
        for path in sorted(tensors):
            status = path.stat()
            found.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
            if not SAFETENSORS.holds(path.name):
                found.update(header_fingerprint(tensors[path]).encode())
                continue
            with path.open("rb") as file:
                found.update(file.read(int.from_bytes(file.read(8), "little")))
        for name, path in sorted(texts_in(folder, tokenizer).items()):
            found.update(f"{name}\0".encode() + path.read_bytes())
    return found.hexdigest()


def header_fingerprint(tensors: Iterable[StoredTensor]) -> str:
    """That of weights known by their headers alone."""
    lines = sorted(f"{each.path.name} {each.name} {each.dtype} {each.shape} {each.offset}" for each in tensors)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def check_runs(spec: ModelSpec, name: str) -> None:
    """ConfigError for what the engine cannot run."""
    if spec.unsupported:
        raise ConfigError(
            f"{spec.family} models cannot be run yet: the engine lacks {', '.join(spec.lacks)}",
            f"moecli inspect and moecli memory know them: moecli inspect {name}",
        )


def _bind(name: str, config: Mapping[str, Any], checkpoint: Callable[[], Checkpoint], here: bool = False) -> Weights:
    family = families.find(config)
    spec = family.read(config)
    check_runs(spec, name)
    opened = checkpoint()
    found, others = split_towers(opened.tensors)
    found = decoded(
        found,
        families.quantization_scheme(config),
        stored_as(spec.stored_dtype),
        partial(input_widths, spec, family),
        opened.whole if here else None,
    )
    notes = []
    if spec.quantization is not None and not any(stored.encoding for stored in found.values()):
        notes.append(f"config.json says that the weights are {spec.quantization}, but none is: they run as they are")
    if others:
        notes.append(f"{len(others)} tensors of vision or audio towers are left out: the text model runs alone")
    return Weights(spec, family, Checkpoint(found, opened.index), tuple(notes))

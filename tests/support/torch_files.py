"""Checkpoints as torch.save writes them, from safetensors ones: one file, or shards with their index."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from moecli.checkpoint.files import TORCH

State = dict[str, torch.Tensor]
Change = Callable[[str, bytes], bytes | None]


def saved(content: Any) -> bytes:
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def rezipped(content: bytes, change: Change | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive as another program would write it. `change` is given an entry's name, without the first folder, and
    its bytes; it returns others, or None to leave the entry out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w", method) as target:
        for entry in source.infolist():
            data: bytes | None = source.read(entry)
            if change is not None and data is not None:
                data = change(entry.filename.partition("/")[2], data)
            if data is not None:
                target.writestr(entry.filename, data)
    return out.getvalue()


def load_folder(folder: Path) -> State:
    """Every tensor of a folder of safetensors files."""
    found: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def rewrite(folder: Path, target: Path, shards: int = 1, **changes: Any) -> Path:
    """A copy of a checkpoint in torch's files; `changes` are arguments of torch.save."""
    target.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix in (".json", ".model") and "index" not in path.name:
            shutil.copy(path, target)
    write(target, load_folder(folder), shards, **changes)
    return target


def write(target: Path, tensors: State, shards: int = 1, **changes: Any) -> None:
    """The tensors as pytorch_model.bin, or dealt into shards with an index."""
    if shards == 1:
        torch.save(tensors, target / TORCH.single, **changes)
        return
    index: dict[str, str] = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[number::shards])
        torch.save(part, target / name, **changes)
        index |= dict.fromkeys(part, name)
    (target / TORCH.index).write_text(json.dumps({"metadata": {}, "weight_map": index}))

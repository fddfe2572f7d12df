"""Checkpoints as torch.save writes them, from safetensors ones: one file, or shards with their index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from moecli.checkpoint.files import TORCH

State = dict[str, torch.Tensor]


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

"""The tensors of one file of weights, by the format that its name tells; nothing but headers is read."""

from __future__ import annotations

from pathlib import Path

from moecli.checkpoint import gguf, gguf_names, grok_release, safetensors, state_dict
from moecli.checkpoint.files import RELEASE, TORCH
from moecli.checkpoint.stored import StoredTensor


def read_header(path: Path, name: str | None = None) -> dict[str, StoredTensor]:
    """The tensors of a file, by name. CheckpointError for one that is damaged or in a format that is refused.

    `name` is what the file is called where it comes from, if not so here.
    """
    name = name or path.name
    if RELEASE.holds(name):
        return grok_release.read_header(path, name)
    if name.endswith(gguf_names.ENDING):
        return gguf.read_file(path)[1]
    return state_dict.read_header(path) if TORCH.holds(name) else safetensors.read_header(path)

"""The session of a loaded model: what its cached numbers depend on beside tokens, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from moecli import __version__
from moecli.engine.load import CheckpointModel
from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.prefixes import reading_of
from moecli.engine.session_file import Failed, Identity, SessionFile, Warn
from moecli.errors import reading
from moecli.formats.words import formats_of
from moecli.kernels.choice import chosen
from moecli.store import manifest
from moecli.store.source import fingerprint


def open_session(loaded: LoadedModel, path: Path, warn: Warn, failed: Failed) -> SessionFile | None:
    """The session file of a model; None, and `warn` is told, where no prompt can begin like another."""
    decoder, cache = loaded.decoder, loaded.cache
    if decoder.encoder is not None or decoder.rotates_by_length:
        warn(f"the session is left out: {loaded.name} reads every prompt as a whole")
        return None
    block = reading_of(decoder, cache, loaded.plan.fits).block
    return SessionFile(path, identity(loaded, block), block, cache.capacity, warn, failed)


def identity(loaded: LoadedModel, block: int) -> Identity:
    """The model's files, its format, how prompts are cut, and who computes. CheckpointError if files cannot be read."""
    decoder, files = loaded.decoder, files_of(loaded.opened)
    formats = formats_of(loaded.dtype)
    own = dict.fromkeys((formats.experts, formats.dense))
    kernels = [chosen(each, decoder.device.type) for each in (*own, "bf16", "fp32")]
    told = [files, loaded.dtype, str(decoder.dtype), decoder.device.type, *kernels, block, __version__]
    text = json.dumps([*told, torch.__version__])
    return Identity(f"{loaded.name} in {loaded.dtype}", hashlib.sha256(text.encode()).hexdigest())


def files_of(opened: OpenedModel) -> str:
    """Changes when a file of the model does, as SHA-256. CheckpointError if they cannot be read."""
    model, folder = opened.model, opened.ref.weights
    if isinstance(model, CheckpointModel):
        return fingerprint(folder, model.weights)
    with reading(folder):
        return hashlib.sha256((folder / manifest.FILE).read_bytes()).hexdigest()

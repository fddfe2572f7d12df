"""Small checkpoints, and stores packed from them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import checkpoint as random_checkpoint
from moecli.errors import MoecliError
from moecli.store.packed import PackedStore
from moecli.store.source import open_source, origin_of
from moecli.store.write import Progress, pack, silent

_SHAPE = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 128, "intermediate_size": 192,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6, "num_experts_per_tok": 2,
    "num_hidden_layers": 5, "vocab_size": 500, "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip


def packed(source: Path, target: Path, dtype: str = "q4", progress: Progress = silent) -> PackedStore:
    """As `moecli pack` does it."""
    weights = open_source(source)
    return pack(weights, source, target, dtype, origin_of(source.name, None, None, source, weights), progress)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def in_child(action: Callable[[], object], kill_after: float | None = None) -> int | str:
    """Run in a process of its own: 0, the message of its failure, or minus the signal that ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            if kill_after is not None:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, as SIGKILL does
                signal.setitimer(signal.ITIMER_REAL, kill_after)
            action()
            status = 0
        except MoecliError as error:
            os.write(writing, error.message.encode())
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        message = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return message or code


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral of five layers in six shards."""
    folder = tmp_path_factory.mktemp("source") / "five-layers"
    random_checkpoint.SHAPES["five-layers"] = _SHAPE
    random_checkpoint.write("five-layers", folder)
    return folder


@pytest.fixture(scope="session")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedStore:
    """It in q4, never interrupted. Not to be changed."""
    return packed(checkpoint, tmp_path_factory.mktemp("stores") / "five-layers-q4")

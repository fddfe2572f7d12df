"""The files of one shape that the benchmarks run on, made where they are missing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoint import INDEX, read_spec
from moecli.model.spec import ModelSpec
from moecli.store import manifest


@dataclass(frozen=True, slots=True)
class Model:
    """A shape and the folder that holds its files. Asking for one writes it, in a process of its own."""

    shape: str
    folder: Path

    @property
    def spec(self) -> ModelSpec:
        return read_spec(self.shape)

    def checkpoint(self) -> Path:
        """Hub layout, bf16."""
        path = self.folder / self.shape
        return self._made(path, path / INDEX, "checkpoint")

    def store(self, dtype: str = "q4") -> Path:
        """Packed."""
        path = self.folder / f"{self.shape}-{dtype}"
        return self._made(path, path / manifest.FILE, "checkpoint", dtype)

    def gguf(self) -> Path:
        """Q4_0."""
        path = self.folder / f"{self.shape}.gguf"
        return self._made(path, path, "gguf_file")

    def _made(self, path: Path, last: Path, module: str, *options: str) -> Path:
        """`last` is what is written last."""
        if not last.is_file():
            print(f"writing {path} ...", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", f"benchmarks.{module}", self.shape, str(path), *options]
            subprocess.run(command, check=True)
        return path

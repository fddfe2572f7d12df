"""The programs that are compared. Every measurement is a fresh process; all compute with MOECLI_THREADS threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from benchmarks import cgroup, gguf_file
from benchmarks.models import Model
from moecli.model.spec import MLA
from moecli.planning import machine
from moecli.planning.memory import estimate_memory, read_bytes_per_token

_BANDWIDTH = "from moecli.kernels.bandwidth import read_bandwidth; print(read_bandwidth())"

Figures = dict[str, float]  # what was measured ("prefill 128") -> tokens per second


@dataclass(frozen=True, slots=True)
class Work:
    """Prompts of so many tokens to read, and `tokens` to decode after each of `depths` tokens."""

    prompts: Sequence[int]
    depths: Sequence[int]
    tokens: int


def prefill(tokens: int) -> str:
    """The name of a figure."""
    return f"prefill {tokens}"


def decode(depth: int) -> str:
    """The name of a figure."""
    return f"decode after {depth}"


class Side(Protocol):
    """One program with one format of weights."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def files(self, model: Model) -> Sequence[Path]:
        """What it reads, made now if it is not there."""
        ...

    def fits(self, model: Model, limit: int | None) -> bool:
        """Whether it can run at all in this memory (None: the machine's)."""
        ...

    def read_bytes_per_token(self, model: Model) -> int:
        """Weights that one decode step reads."""
        ...

    def measure(self, model: Model, work: Work, group: Path | None) -> Figures:
        """CalledProcessError if it fails, for example for want of memory."""
        ...


class Moecli:
    """`moecli bench` on a q4 store."""

    name = "moecli q4"

    @property
    def version(self) -> str:
        return f"moecli {version('moecli')}, torch {version('torch')}"

    def files(self, model: Model) -> Sequence[Path]:
        return list(model.store().iterdir())

    def fits(self, model: Model, limit: int | None) -> bool:
        return True

    def read_bytes_per_token(self, model: Model) -> int:
        return read_bytes_per_token(model.spec, "q4")

    def measure(self, model: Model, work: Work, group: Path | None) -> Figures:
        figures: Figures = {}
        for length in sorted({*work.prompts, *work.depths}):
            steps = work.tokens if length in work.depths else 1
            command = [sys.executable, "-m", "moecli", "bench", str(model.store()), "--json", "--quiet", "--yes"]
            command += ["--prompt-tokens", str(length), "--max-tokens", str(steps), "--repeat", "1"]
            found = json.loads(cgroup.run(command, group, accepted=(0, 3)))  # 3: not as fast as forecast, or faster
            if length in work.prompts:
                figures[prefill(length)] = found["prefill_tokens_per_s"]
            if length in work.depths:
                figures[decode(length)] = found["decode_tokens_per_s"]
        return figures


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """`llama-bench` on a Q4_0 file, with its own defaults; where memory is short, mapped as it lies."""

    bench: Path
    name: str = "llama.cpp Q4_0"

    @property
    def version(self) -> str:
        result = subprocess.run([self.bench, "--version"], capture_output=True, encoding="utf-8")
        lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("version")]
        return f"llama.cpp {lines[0] if lines else '(no version)'}"

    def files(self, model: Model) -> Sequence[Path]:
        return [model.gguf()]

    def fits(self, model: Model, limit: int | None) -> bool:
        return True

    def read_bytes_per_token(self, model: Model) -> int:
        return gguf_file.read_bytes_per_token(model.spec)

    def measure(self, model: Model, work: Work, group: Path | None) -> Figures:
        prompts, depths = (",".join(map(str, counts)) for counts in (work.prompts, work.depths))
        where = ["--repack", "0"] if group else []  # a copy in another order would be killed
        found = []
        if prompts:
            found += self._run(model, group, "-p", prompts, "-n", "0", *where)
        if depths:
            found += self._run(model, group, "-p", "0", "-n", str(work.tokens), "-d", depths, *where)
        names = (prefill(each["n_prompt"]) if each["n_prompt"] else decode(each["n_depth"]) for each in found)
        return {name: each["avg_ts"] for name, each in zip(names, found, strict=True)}

    def _run(self, model: Model, group: Path | None, *tests: str) -> list[dict[str, Any]]:
        command = [str(self.bench), "-m", str(model.gguf()), "-t", str(machine.compute_threads())]
        command += ["-r", "1", "-o", "json", *tests]
        found: list[dict[str, Any]] = json.loads(cgroup.run(command, group))
        return found


@dataclass(frozen=True, slots=True)
class IkLlamaCpp(LlamaCpp):
    """The same of ik_llama.cpp, with what its authors advise: repacked at load, fused mixture and attention."""

    name: str = "ik_llama.cpp Q4_0"

    @property
    def version(self) -> str:
        return f"ik_{super(IkLlamaCpp, self).version}"

    def measure(self, model: Model, work: Work, group: Path | None) -> Figures:
        latent = any(isinstance(layer.attention, MLA) for layer in model.spec.layers)
        advised = ["-rtr", "0" if group else "1", "-fmoe", "1", "-fa", "1", *(["-mla", "3"] if latent else [])]
        figures: Figures = {}
        if work.prompts:
            found = self._run(model, group, "-p", ",".join(map(str, work.prompts)), "-n", "0", *advised)
            figures |= {prefill(each["n_prompt"]): each["avg_ts"] for each in found}
        for depth in work.depths:
            (only,) = self._run(model, group, "-p", "0", "-n", "0", "-gp", f"{depth},{work.tokens}", *advised)
            figures[decode(depth)] = only["avg_ts"]
        return figures


class Transformers:
    """The reference implementation on the bf16 checkpoint."""

    name = "transformers bf16"

    @property
    def version(self) -> str:
        return f"transformers {version('transformers')}"

    def files(self, model: Model) -> Sequence[Path]:
        return list(model.checkpoint().iterdir())

    def fits(self, model: Model, limit: int | None) -> bool:
        room = limit or machine.free_ram()
        return 1.1 * estimate_memory(model.spec, "bf16", 1).peak < room

    def read_bytes_per_token(self, model: Model) -> int:
        return read_bytes_per_token(model.spec, "bf16")

    def measure(self, model: Model, work: Work, group: Path | None) -> Figures:
        command = [sys.executable, "-m", "benchmarks.transformers_speed", str(model.checkpoint())]
        for counts in (work.prompts, work.depths, [work.tokens]):
            command.append(",".join(map(str, counts)))
        figures: Figures = json.loads(cgroup.run(command, group))
        return figures


def read_bandwidth() -> float:
    """Bytes per second, measured in a process of its own."""
    return float(cgroup.run([sys.executable, "-c", _BANDWIDTH]))


def use_threads(count: int) -> None:
    """From now on, by every process that is started; torch alone reads the second name."""
    os.environ["MOECLI_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(count)

"""The libraries this program stands on: their versions, and whether torch can be imported."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from moecli import __version__

_SHOWN = ("torch", "safetensors", "huggingface-hub", "tokenizers", "bitsandbytes")
_NEEDED = re.compile(r"([\w.-]+)>=([\d.]+)")  # what follows a name with ";" belongs to an extra


@dataclass(frozen=True, slots=True)
class Library:
    """One that is needed; `version` is None where it is not installed, `least` is the oldest that will do."""

    version: str | None
    least: str | None

    @property
    def outdated(self) -> bool:
        return self.version is not None and self.least is not None and _order(self.version) < _order(self.least)


@dataclass(frozen=True, slots=True)
class Software:
    """Versions. `torch_failure` is why torch cannot be imported, `torch_build` what it computes on."""

    moecli: str
    python: str
    system: str
    libraries: Mapping[str, Library]
    torch_build: str | None
    torch_failure: str | None


def look() -> Software:
    build, failure = _torch()
    system = f"{platform.system()} {platform.release()}"
    return Software(__version__, platform.python_version(), system, _libraries(), build, failure)


def _libraries() -> dict[str, Library]:
    """Those that are shown, then the others that moecli says it needs."""
    try:
        needed = {match[1]: match[2] for text in requires("moecli") or () if (match := _NEEDED.fullmatch(text))}
    except PackageNotFoundError:
        needed = {}
    return {name: Library(_version(name), needed.get(name)) for name in dict.fromkeys((*_SHOWN, *needed))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _order(text: str) -> list[int]:
    """2.13.0+cpu as numbers that compare: 2, 13."""
    match = re.match(r"\d+(?:\.\d+)*?(?=(?:\.0)*(?![\d.]))", text)
    return [int(number) for number in match[0].split(".")] if match else []


def _torch() -> tuple[str | None, str | None]:
    """What it is built for, or why it cannot be imported."""
    try:
        import torch

        if torch.version.cuda:
            return f"CUDA {torch.version.cuda}", None
        return (f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"), None
    except (ImportError, OSError, AttributeError) as error:
        return None, (str(error) or type(error).__name__).splitlines()[0]

"""Which GGUF files of a repository are one model, and how it is quantised, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from moecli.errors import ModelNotFound, printable

ENDING = ".gguf"
_NUMBERED = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MOST_PARTS = 1000
# As llama.cpp and those who quantise with it call them, behind the model's name: Q4_K_M, UD-IQ2_XXS, bf16, MXFP4_MOE.
_LABEL = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8]|TQ[12]|BF16|F16|F32|FP16|MXFP4|NVFP4)(?:_[A-Z0-9]+)*)(?=[-._]|$)")
_NO_MODEL = re.compile(r"(?:.*[-._])?(?:mmproj|imatrix)(?:[-._].*)?", re.IGNORECASE)
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of a repository: `label` is its quantisation, or its name where that says none; files in order."""

    label: str
    files: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether all its parts are there."""
        return len(self.files) == len(parts_of(self.files[0]))


def parts_of(name: str) -> list[str]:
    """The names of all files of a model, of which this is one; they may be in a folder."""
    match = _NUMBERED.fullmatch(name)
    if match is None or not 1 < int(match[3]) <= _MOST_PARTS:
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def variants(names: Iterable[str]) -> list[Variant]:
    """The models among these files, by name; no vision towers and no statistics of activations."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        stem = _stem(name)
        if name.endswith(ENDING) and not _NO_MODEL.fullmatch(stem.rpartition("/")[2]):
            found.setdefault(stem, []).append(name)
    return [Variant(_label(stem), tuple(files)) for stem, files in found.items()]


def choose(here: list[Variant], wanted: str, where: str) -> Variant:
    """The one of that label, or with a file of that name. ModelNotFound, with what there is, for none or several."""
    word = wanted.casefold()
    if named := [each for each in here if any(word in (name.casefold(), _last(name)) for name in each.files)]:
        return _only(named, wanted, where)
    exact = [each for each in here if each.label.casefold() == word]
    return _only(exact or [each for each in here if each.label.casefold() == f"ud-{word}"], wanted, where, here)


def _only(found: list[Variant], wanted: str, where: str, here: list[Variant] | None = None) -> Variant:
    if len(found) == 1:
        return found[0]
    shown = printable(wanted, 80)
    if found:
        names = " or ".join(printable(each.files[0], 80) for each in found[:_SHOWN])
        raise ModelNotFound(f"{where} holds {len(found)} models called {shown}", f"name the file: {where}:{names}")
    labels = [printable(each.label, 40) for each in here or []]
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    hint = f"it holds {', '.join(labels[:_SHOWN])}{more}" if labels else "it holds no GGUF file"
    raise ModelNotFound(f"{where} holds no GGUF file called {shown}", hint)


def _last(name: str) -> str:
    return name.rpartition("/")[2].casefold()


def _stem(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name.removesuffix(ENDING)


def _label(stem: str) -> str:
    """The last word that is one, of the file's name or, where that has none, of its folder's."""
    for part in reversed(stem.split("/")):
        if found := _LABEL.findall(part.upper()):
            return str(found[-1])
    return stem.rpartition("/")[2]

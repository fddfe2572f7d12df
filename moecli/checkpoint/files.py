"""Which files of a folder or repository hold the model, by name: one file, shards with an index, or numbered shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from moecli.errors import CheckpointError, json_object, printable

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # of weights; never opened
_SUFFIX = ".safetensors"
_MOST_FILES = 10_000
_NUMBERED = re.compile(r"(.+)-([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
# What trainers and other formats leave beside a model: Mistral's own copy of the weights, adapters, heads, states.
_STRANGER = re.compile(
    r"(consolidated|adapter|optimi[sz]er|optim_|scheduler|random_states|rng_state|train(er|ing)_|v(alue)?_head"
    r"|(.*[._-])?lora([._-].*)?$|ema[._-]).*",
    re.IGNORECASE,
)
# Copies in another precision, as diffusers and transformers name them: model.fp16-00001-of-00002.safetensors.
_VARIANT = re.compile(r"(model\.[^.]+(-[0-9]+-of-[0-9]+)?|model-[0-9]+-of-[0-9]+\.[^.]+)\.safetensors")


def weight_map(index: bytes, called: str) -> dict[str, str]:
    """The file of each tensor, as an index of shards says. CheckpointError, by what it is `called`, if it is unfit."""
    unfit = CheckpointError(f"{called} is not a readable index", "fetch the file again")
    try:
        files = json_object(index, lambda problem: unfit)["weight_map"]
        names = set(files.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise unfit from error
    if not files:
        raise unfit
    if len(names) > _MOST_FILES:
        raise CheckpointError(f"{called} names {len(names)} files, which cannot be right", "fetch the file again")
    if bad := [name for name in names if not _is_plain(name)]:
        raise CheckpointError(f"{called} names a file outside its folder: '{printable(str(bad[0]), 80)}'")
    return dict(files)


def _is_plain(name: object) -> bool:
    """Whether it can only name a file beside the index, on any system."""
    return isinstance(name, str) and name not in ("", ".", "..") and {"/", "\\", "\0", ":"}.isdisjoint(name)


def choose(
    names: Iterable[str], index: Mapping[str, str] | None, in_single: Callable[[], Collection[str]]
) -> list[str]:
    """The files that hold the model, in order; those that an index names may be missing. Empty if there are none.

    As transformers does, a complete `model.safetensors` comes before an index, whose shards may be gone or another
    precision. It is incomplete where shards are there and it lacks what they are to hold; `in_single` are the tensors
    in it. Without either, numbered shards, else whatever is no stranger.
    """
    here = {name for name in names if name.endswith(_SUFFIX)}
    if index is None:
        return [SINGLE] if SINGLE in here else _unindexed(here)
    shards = sorted(set(index.values()))
    if SINGLE not in here or SINGLE in shards:
        return shards
    return [SINGLE] if here.isdisjoint(shards) or index.keys() <= set(in_single()) else shards


def _unindexed(here: set[str]) -> list[str]:
    own = {name for name in here if not _STRANGER.match(name)}
    own = {name for name in own if not _VARIANT.fullmatch(name)} or own
    numbered = {name for name in own if _NUMBERED.fullmatch(name)}
    return sorted(numbered or own)


def missing(chosen: Collection[str], names: Collection[str]) -> list[str]:
    """Which of the chosen files are not among `names`; `x-00001-of-00003` tells what there must be without an index."""
    if gone := sorted(set(chosen).difference(names)):
        return gone
    groups: dict[tuple[str, str], set[str]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, chosen)):
        groups.setdefault((match[1], match[3]), set()).add(match[2])
    for (stem, total), numbers in sorted(groups.items()):
        if len(numbers) != int(total) <= _MOST_FILES:
            wanted = [f"{number:0{len(total)}}" for number in range(1, int(total) + 1)]
            gone = [f"{stem}-{number}-of-{total}.safetensors" for number in wanted if number not in numbers]
            return gone
    return []


def no_weights(names: Iterable[str], where: str) -> CheckpointError:
    """Why none of these files is a model."""
    found = sorted(names)
    if pickle := next((name for name in found if name.endswith(PICKLES)), None):
        return CheckpointError(
            f"{where} holds only pickled weights ({printable(pickle, 80)}), which can run code when opened",
            "look for a safetensors release of the model, or convert it with its own tools",
        )
    if stranger := next((name for name in found if name.endswith(_SUFFIX)), None):
        return CheckpointError(
            f"{where} holds {printable(stranger, 80)} and no model.safetensors",
            "an adapter, a head or a state belongs to a model: name the folder of that model, or of the merged one",
        )
    return CheckpointError(f"{where} holds no *.safetensors files", "fetch the model again")

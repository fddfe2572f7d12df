"""Which files of a folder or repository hold the model, by name: one file, shards with an index, or numbered shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moecli.errors import CheckpointError, json_object, printable


@dataclass(frozen=True, slots=True)
class Container:
    """How the files of one format are called: by their endings, one for all, and the index of several."""

    endings: str  # a regular expression
    single: str
    index: str

    def holds(self, name: str) -> bool:
        """Whether a file of this name is of this format."""
        return re.search(rf"(?:{self.endings})\Z", name) is not None


RELEASE_FOLDER = "ckpt-0"  # of Grok-1, as xAI released it: the one folder of weights inside another
SAFETENSORS = Container(r"\.safetensors", "model.safetensors", "model.safetensors.index.json")
TORCH = Container(r"\.bin|\.pt|\.pth", "pytorch_model.bin", "pytorch_model.bin.index.json")
RELEASE = Container(rf"^{RELEASE_FOLDER}/tensor[0-9]{{5}}_000", "", "")
CONTAINERS = (SAFETENSORS, TORCH, RELEASE)  # the first of which there are weights counts
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_FILES = 10_000
_NUMBERED = re.compile(r"(.+)-([0-9]{1,9})-of-([0-9]{1,9})(\.(?:safetensors|bin|pt|pth))")
# Shards that each hold a part of every matrix: pytorch_model-00003-TP-007.safetensors, pytorch_model-00003-007.bin.
_PARALLEL = re.compile(r".*-[0-9]+-(TP-[0-9]+|[0-9]{3})\.(?:safetensors|bin)")
# What trainers and other formats leave beside a model: Mistral's own copy of the weights, adapters, heads, states.
_STRANGER = re.compile(
    r"(consolidated|adapter|optimi[sz]er|optim_|scheduler|random_states|rng_state|train(er|ing)_|v(alue)?_head|ggml"
    r"|(.*[._-])?lora([._-].*)?$|ema[._-]).*",
    re.IGNORECASE,
)
# Copies in another precision, as diffusers and transformers name them: model.fp16-00001-of-00002.safetensors.
_VARIANT = re.compile(r"(?:pytorch_)?(model\.[^.]+(-[0-9]+-of-[0-9]+)?|model-[0-9]+-of-[0-9]+\.[^.]+)\.[a-z]+")


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


def container(names: Iterable[str]) -> Container:
    """The format in which a folder or repository with these files holds its model: torch's only for want of another."""
    here = set(names)
    return next((each for each in CONTAINERS if each.index in here or _unindexed(each, here)), SAFETENSORS)


def choose(
    names: Iterable[str], index: Mapping[str, str] | None, in_single: Callable[[], Collection[str]]
) -> list[str]:
    """The files that hold the model, in order; those that an index names may be missing. Empty if there are none.

    As transformers does, a complete `model.safetensors` comes before an index, whose shards may be gone or another
    precision. It is incomplete where shards are there and it lacks what they are to hold; `in_single` are the tensors
    in it. Without either, numbered shards, else whatever is no stranger. `index` is that of the files' `container`.
    """
    kind = container(names := set(names))
    here = set(filter(kind.holds, names))
    if index is None:
        return [kind.single] if kind.single in here else _unindexed(kind, here)
    shards = sorted(set(index.values()))
    if kind.single not in here or kind.single in shards:
        return shards
    return [kind.single] if here.isdisjoint(shards) or index.keys() <= set(in_single()) else shards


def _unindexed(kind: Container, names: Iterable[str]) -> list[str]:
    own = {name for name in names if kind.holds(name) and not _STRANGER.match(name)}
    own = {name for name in own if not _VARIANT.fullmatch(name)} or own
    numbered = {name for name in own if _NUMBERED.fullmatch(name)}
    return sorted(numbered or own)


def missing(chosen: Collection[str], names: Collection[str]) -> list[str]:
    """Which of the chosen files are not among `names`; `x-00001-of-00003` tells what there must be without an index."""
    if gone := sorted(set(chosen).difference(names)):
        return gone
    if chosen and all(map(RELEASE.holds, chosen)):
        return sorted(_release_files(max(chosen)).difference(names))
    groups: dict[tuple[str, str, str], set[str]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, chosen)):
        groups.setdefault((match[1], match[3], match[4]), set()).add(match[2])
    for (stem, total, suffix), numbers in sorted(groups.items()):
        if len(numbers) != int(total) <= _MOST_FILES:
            wanted = [f"{number:0{len(total)}}" for number in range(1, int(total) + 1)]
            gone = [f"{stem}-{number}-of-{total}{suffix}" for number in wanted if number not in numbers]
            return gone
    return []


def _release_files(last: str) -> set[str]:
    """Every file of a release of Grok-1 whose last one is this: two, and twelve for each layer."""
    layers = -(-(int(last[-9:-4]) - 1) // 12)
    return {f"{RELEASE_FOLDER}/tensor{number:05}_000" for number in range(2 + 12 * layers)}


def names_in(folder: Path) -> set[str]:
    """Everything at the top of a folder, and the weights of a release by their path. OSError if it cannot be read."""
    names = {path.name for path in folder.iterdir()}
    if RELEASE_FOLDER in names and (folder / RELEASE_FOLDER).is_dir():
        names |= {f"{RELEASE_FOLDER}/{path.name}" for path in (folder / RELEASE_FOLDER).iterdir()}
    return names


def cut_apart(chosen: Iterable[str]) -> CheckpointError | None:
    """Why these shards hold no whole tensors; None where nothing in their names says so."""
    cut = next(filter(_PARALLEL.fullmatch, chosen), None)
    if cut is None:
        return None
    return CheckpointError(
        f"the shards are cut for tensor parallelism: {printable(cut, 80)} holds a part of each tensor",
        "look for a release whose shards hold whole tensors",
    )


def no_weights(names: Iterable[str], where: str) -> CheckpointError:
    """Why none of these files is a model."""
    found = sorted(names)
    whole = "look for a release in transformers' format, as safetensors"
    if gguf := next((name for name in found if name.endswith(".gguf")), None):
        name = printable(gguf, 80)
        return CheckpointError(
            f"{where} holds its weights as GGUF: {name}",
            f"name the file itself: moecli run ./{name}; of a repository, moecli run org/name:Q4_K_M",
        )
    if own := next((name for name in found if name.startswith("consolidated.")), None):
        return CheckpointError(
            f"{where} holds its weights in Mistral's own format, which is not read: {printable(own, 80)}", whole
        )
    if stranger := next((name for name in found if SAFETENSORS.holds(name)), None):
        return CheckpointError(
            f"{where} holds {printable(stranger, 80)} and no {SAFETENSORS.single}",
            "an adapter, a head or a state belongs to a model: name the folder of that model, or of the merged one",
        )
    if pickle := next((name for name in found if name.endswith(_PICKLES)), None):
        return CheckpointError(
            f"{where} holds no weights that can be read, only {printable(pickle, 80)}",
            f"look for a release as safetensors, or as {TORCH.single}",
        )
    hint = "fetch the model again, or look for a release as safetensors"
    return CheckpointError(f"{where} holds no weights: no *.safetensors and no {TORCH.single}", hint)

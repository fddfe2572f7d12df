"""What every encoding is read from: the tensors of one matrix, and what config.json says of how they were made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moecli.checkpoint.stored import Encoding, StoredTensor
from moecli.errors import CheckpointError, ConfigError, printable

FLOAT_FORMATS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # of scales, in which they are computed with
_HINT = "the file and its config.json belong to different models, or a file is damaged: fetch both again"


Read = Callable[[StoredTensor], bytes]  # of small tensors that say something of others


@dataclass(frozen=True, slots=True)
class Matrix:
    """One quantised matrix: its codes, and what stands `near` them by the ending of its name."""

    name: str  # that the matrix has in the model
    codes: StoredTensor
    near: Mapping[str, StoredTensor]
    inputs: int | None = None  # that it has in the model, where that is known

    def beside(self, ending: str, but: str = "") -> StoredTensor:
        """The one tensor whose name ends so. CheckpointError if there is none, or another."""
        found = [each for key, each in self.near.items() if re.fullmatch(ending, key) and not re.fullmatch(but, key)]
        if len(found) != 1:
            raise misfit(self.codes, f"has {len(found) or 'none'} of what must be beside it under one name: {ending}")
        return found[0]

    def maybe(self, ending: str) -> StoredTensor | None:
        """The same where it may be missing."""
        return self.near.get(ending)

    def stored(self, shape: tuple[int, ...], encoding: Encoding) -> StoredTensor:
        """The matrix that all of it stands for."""
        return replace(self.codes, shape=shape, encoding=encoding)


def misfit(stored: StoredTensor, problem: str) -> CheckpointError:
    """Why a tensor cannot be what the others and config.json say."""
    return CheckpointError(f"{printable(stored.name, 80)}, {list(stored.shape)}, {problem}", _HINT)


def block_size(scheme: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where the scheme says so."""
    found = scheme.get("weight_block_size")
    match found:
        case None:
            return None
        case [int(tall), int(wide)] if 0 < tall < 2**16 and 0 < wide < 2**16:
            return tall, wide
    raise ConfigError("quantization_config: weight_block_size must be two numbers of rows and columns", _HINT)


def agree(scheme: Mapping[str, Any], name: str, **found: int | None) -> None:
    """CheckpointError where config.json says another number than the tensors of a matrix do; None: they do not say.

    GPTQ's `dynamic` has other numbers for the modules whose names its patterns match.
    """
    own = dict(scheme)
    dynamic = scheme.get("dynamic")
    for pattern, more in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if isinstance(more, Mapping) and _matches(str(pattern).removeprefix("+:"), name.removesuffix(".weight")):
            own |= more
    for key, value in found.items():
        said = own.get(key, own.get({"bits": "w_bit", "group_size": "q_group_size"}.get(key, key)))
        if value is not None and type(said) is int and said > 0 and said != value:
            raise CheckpointError(
                f"config.json says that {key} is {said}, and the tensors of {printable(name, 80)} that it is {value}",
                _HINT,
            )


def group_of(scheme: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What compressed-tensors says of the weights of a module: of the group whose target it is, else of the first."""
    groups = scheme.get("config_groups")
    found = [each for each in groups.values() if isinstance(each, Mapping)] if isinstance(groups, Mapping) else []
    module = name.removesuffix(".weight")

    def is_target(group: Mapping[str, Any]) -> bool:
        targets = group.get("targets")
        words = [each for each in targets if isinstance(each, str)] if isinstance(targets, list) else []
        return any(
            _matches(each[3:], module) if each.startswith("re:") else each == module or module.endswith(f".{each}")
            for each in words
        )

    chosen = next(filter(is_target, found), None) or next(iter(found), {})
    weights = chosen.get("weights")
    return weights if isinstance(weights, Mapping) else {}


def mlx_module(scheme: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What MLX says of a module: its own entry, which may lack a key, before what is said of all."""
    own = scheme.get(name.removesuffix(".weight"))
    return {**scheme, **own} if isinstance(own, Mapping) else scheme


def _matches(pattern: str, name: str) -> bool:
    """As these libraries match: from the beginning. A pattern that is none, or no simple one, matches nothing."""
    if len(pattern) > 200 or re.search(r"[+*}]\)*[+*{]", pattern):  # what could take for ever
        return False
    try:
        return re.match(pattern, name) is not None
    except re.error:
        return False

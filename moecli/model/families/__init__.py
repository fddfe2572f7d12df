"""Model families: which config.json dialect is whose; one small data file each, those in `facts` are not run."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from types import ModuleType
from typing import Any

from moecli.errors import ConfigError, printable
from moecli.model.families import facts
from moecli.model.families._config import load_config, quantization_name
from moecli.model.families._layout import ExpertNames, Family, Layout, NamedSlice, mlx_layouts
from moecli.model.families._parts import text_part
from moecli.model.spec import ModelSpec

__all__ = [
    "ExpertNames",
    "Family",
    "Layout",
    "NamedSlice",
    "families",
    "find",
    "load_config",
    "quantization_name",
    "quantization_scheme",
    "read_spec",
    "runnable",
]


@cache
def families() -> Mapping[str, Family]:
    """Every family, by the name of its file: those that run and those that are facts only."""
    return dict(sorted((runnable() | _in_package(facts)).items()))


@cache
def runnable() -> dict[str, Family]:
    """The families that the engine runs, by the name of their file."""
    found = _in_package(sys.modules[__name__])
    return {name: replace(each, layouts=each.layouts + mlx_layouts(each.layouts)) for name, each in found.items()}


def _in_package(package: ModuleType) -> dict[str, Family]:
    modules = [each.name for each in pkgutil.iter_modules(package.__path__) if not each.ispkg]
    return {
        name: importlib.import_module(f"{package.__name__}.{name}").FAMILY
        for name in modules
        if not name.startswith("_")
    }


def find(config: Mapping[str, Any]) -> Family:
    """The family of a config.json: by a class in `architectures`, by model_type, or that of the text model inside."""
    family = _named(config)
    if family is None:
        key, part = text_part(config)
        family = _named(part) if key else None
        if family is not None:
            return replace(family, read=partial(_read_text, family.read))
    if family is None:
        names = (*_architectures(config), config.get("model_type"))
        named = next((name for name in names if name and isinstance(name, str)), "(none)")
        raise ConfigError(
            f"architecture '{printable(named, 80)}' is not supported",
            f"moecli list --known names models of the {len(families())} families that are",
        )
    return family


def _architectures(config: Mapping[str, Any]) -> list[Any]:
    named = config.get("architectures")
    return named if isinstance(named, list) else []


def _named(config: Mapping[str, Any]) -> Family | None:
    """By the classes it names, whichever of them is known; by model_type where they are that family's own or none."""
    named, model_type = _architectures(config), config.get("model_type")
    by_type = next((each for each in families().values() if model_type in each.model_types), None)
    by_class = [each for name in named for each in families().values() if name in each.architectures]
    if by_class:
        if by_type is not None and by_type not in by_class and by_class[0].signature not in config:
            raise ConfigError(
                f"{_name(by_class[0])}: config key 'model_type' is \"{model_type}\", which contradicts 'architectures'",
                "one of the two belongs to another model",
            )
        return by_type if by_type in by_class else by_class[0]
    if by_type is not None:
        return by_type if not named or any(_is_own_class(name, by_type) for name in named) else None
    if named or model_type is not None:
        return None
    return next((each for each in families().values() if each.signature in config), None)


def _name(family: Family) -> str:
    return next(name for name, each in families().items() if each is family)


def _is_own_class(name: Any, family: Family) -> bool:
    """Whether a class is called after the family: its base model, or a subclass of somebody's own.

    What generates no text (MixtralForSequenceClassification) is not, nor what is called after nothing known: a class
    that shares only the model_type may compute anything.
    """
    stems = "|".join(re.escape(re.sub(r"For[A-Z]\w+$", "", each)) for each in family.architectures)
    pattern = rf"\w*({stems})(Model|ForCausalLM|LMHeadModel)?"
    return bool(stems) and isinstance(name, str) and re.fullmatch(pattern, name, re.IGNORECASE) is not None


def _read_text(read: Callable[[Mapping[str, Any]], ModelSpec], config: Mapping[str, Any]) -> ModelSpec:
    """The text model of a file that describes others beside it."""
    key, part = text_part(config)
    spec = read(part)
    others = any(isinstance(value, dict) and name.endswith("_config") for name, value in config.items() if name != key)
    return replace(spec, notes=(*spec.notes, _TEXT_ALONE)) if others else spec


def quantization_scheme(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a config.json says that its weights were quantised, as it says it; empty where it says nothing."""
    part = text_part(config)[1]
    found = part.get("quantization_config") or part.get("quantization")  # older MLX writes the second alone
    return found if isinstance(found, Mapping) else {}


_TEXT_ALONE = "the text model alone: the vision tower is not counted"


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """config.json -> ModelSpec. ConfigError for anything missing, absurd, unknown or unsupported."""
    return find(config).read(config)

"""Model families: which config.json dialect is whose; one small data file each, those in `facts` are not run."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from moecli.errors import ConfigError, printable
from moecli.model.families import facts
from moecli.model.families._config import load_config
from moecli.model.families._layout import ExpertNames, Family, Layout, NamedSlice
from moecli.model.spec import ModelSpec

__all__ = ["ExpertNames", "Family", "Layout", "NamedSlice", "families", "find", "load_config", "read_spec", "runnable"]


@cache
def families() -> Mapping[str, Family]:
    """Every family, by the name of its file: those that run and those that are facts only."""
    return dict(sorted((runnable() | _in_package(facts)).items()))


@cache
def runnable() -> dict[str, Family]:
    """The families that the engine runs, by the name of their file."""
    return _in_package(sys.modules[__name__])


def _in_package(package: ModuleType) -> dict[str, Family]:
    modules = [each.name for each in pkgutil.iter_modules(package.__path__) if not each.ispkg]
    return {
        name: importlib.import_module(f"{package.__name__}.{name}").FAMILY
        for name in modules
        if not name.startswith("_")
    }


def find(config: Mapping[str, Any]) -> Family:
    """The family of a config.json: by architecture, then by model_type, then by a key only it has."""
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    for family in families().values():
        if architecture in family.architectures:
            return family
    model_type = config.get("model_type")
    if architecture is None:
        for family in families().values():
            if model_type in family.model_types or (model_type is None and family.signature in config):
                return family
    named = next((name for name in (architecture, model_type) if name and isinstance(name, str)), "(none)")
    raise ConfigError(
        f"architecture '{printable(named, 80)}' is not supported",
        "supported: " + ", ".join(families()),
    )


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """config.json -> ModelSpec. ConfigError for anything missing, absurd, unknown or unsupported."""
    return find(config).read(config)

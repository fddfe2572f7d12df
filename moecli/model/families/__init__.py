"""Model families: which config.json dialect is whose. One small data file per family, found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from moecli.errors import ConfigError
from moecli.model.families._config import load_config
from moecli.model.families._layout import ExpertNames, Family, Layout, Piece
from moecli.model.spec import ModelSpec
from moecli.untrusted import printable

__all__ = ["ExpertNames", "Family", "Layout", "Piece", "families", "find", "load_config", "read_spec"]


@cache
def families() -> Mapping[str, Family]:
    """Every family, by the name of its file."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in sorted(modules)}


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

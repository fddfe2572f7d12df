"""What moecli can run or inspect: the models on this machine, and those it knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.errors import ConfigError
from moecli.formats import stored_as
from moecli.hub import cache as hub_cache
from moecli.library.resolve import built_in, packed_from
from moecli.library.stores import LocalStore, local_stores
from moecli.model import catalog, families, params
from moecli.model.spec import lacks
from moecli.planning import choice, machine
from moecli.planning.memory import default_context, estimate_memory
from moecli.planning.placement import Plan, place


@dataclass(frozen=True, slots=True)
class Here:
    """One model on this machine."""

    name: str
    format: str
    bytes: int
    path: Path
    source: str
    revision: str | None
    complete: bool
    revisions: tuple[str, ...] = ()
    partial_bytes: int = 0  # of downloads that were not finished
    last_used: float | None = None  # seconds since 1970
    damaged: bool = False  # a packed model that does not say what it is
    stands_for: str | None = None  # the name that means it, though another model has that name


@dataclass(frozen=True, slots=True)
class Known:
    """One model that has an alias, with its computed size. `entry` is None for the built-in one."""

    alias: str
    entry: catalog.Entry | None
    family: str
    total: int
    active: int
    lacks: tuple[str, ...]  # what the engine cannot do yet; runnable if empty
    q4_bytes: int
    best: Plan | None  # in the format to take here; None where this memory holds none


def here() -> list[Here]:
    """The built-in model, packed stores, and every repository in the Hugging Face cache whose family is known."""
    return [*_built_in(), *map(_packed, local_stores()), *filter(None, map(_cached, hub_cache.local_models()))]


def known(word: str = "") -> list[Known]:
    """The built-in model and the catalog, smallest first, sizes counted from the bundled configurations.

    `word`: only those in whose alias, names or repository it is.
    """
    folder, ram = built_in().folder, machine.free_ram()
    first = [_known(catalog.BUILT_IN, None, families.load_config(folder / "config.json"), ram)] if folder else []
    models = first + [_known(entry.alias, entry, entry.config(), ram) for entry in catalog.known()]
    return sorted((each for each in models if _is_called(each, word)), key=lambda each: each.total)


def _is_called(model: Known, word: str) -> bool:
    entry = model.entry
    names = (model.alias, *((*entry.names, entry.repo or "") if entry else ()))
    return any(word.casefold() in name.casefold() for name in names)


def _known(alias: str, entry: catalog.Entry | None, config: Mapping[str, Any], ram: int) -> Known:
    spec = families.read_spec(config)
    counts = params.count(spec)
    plans = [
        place(estimate_memory(spec, name, default_context(spec)), ram)
        for name in choice.automatic(stored_as(spec.stored_dtype))
    ]
    return Known(
        alias, entry, spec.family, counts.total, counts.active, lacks(spec, spec.quantization),
        plans[-1].memory.weights, choice.best(plans, plans),
    )  # fmt: skip


def _built_in() -> list[Here]:
    folder = built_in().folder
    if folder is None:
        return []
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    config = families.load_config(folder / "config.json")
    return [Here(catalog.BUILT_IN, _format(config), size, folder, "built in", None, True)]


def _cached(model: hub_cache.LocalModel) -> Here | None:
    """None for what is no model of a family known here: tokenizers, image models, no config.json and no GGUF."""
    if model.damaged:
        return Here(model.name, "unknown", 0, model.path, model.repo, None, False, damaged=True)
    try:
        config = families.load_config(model.path / "config.json")
        families.find(config)
        stored = _format(config)
    except ConfigError:
        labels = [each.label for each in hub_cache.variants(model.path)]
        if not labels:
            return None
        stored = f"{len(labels)} GGUF files" if len(labels) > 1 else labels[0]
    return Here(
        model.name, stored, model.bytes, model.path, model.repo, model.revision, model.complete,
        model.revisions, model.partial_bytes, model.last_used,
    )  # fmt: skip


def _packed(store: LocalStore) -> Here:
    source = store.source if store.revision else store.model
    meant = packed_from((store.model,), "auto")
    stands_for = store.model if meant is not None and meant.path == store.path else None
    return Here(
        store.name, store.dtype, store.bytes, store.path, source, store.revision, store.complete, damaged=store.damaged,
        stands_for=stands_for,
    )  # fmt: skip


def _format(config: Mapping[str, Any]) -> str:
    """How the weights are stored, by the word of config.json."""
    quantised = families.quantization_name(config)
    if quantised is not None:
        return quantised
    dtype = config.get("dtype") or config.get("torch_dtype")
    return stored_as(dtype if isinstance(dtype, str) else None)

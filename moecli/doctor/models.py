"""The models on this machine: how many lie where, what is unfinished, and whether the built-in one is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecli import settings
from moecli.errors import MoecliError
from moecli.hub import cache as hub_cache
from moecli.library import resolve, stores
from moecli.library.stores import LocalStore
from moecli.planning.placement import fit


@dataclass(frozen=True, slots=True)
class Held:
    """What one place holds; `unfinished` models and their bytes, which pull or pack would complete, are among it."""

    models: int = 0
    bytes: int = 0
    unfinished: int = 0
    unfinished_bytes: int = 0
    failure: str | None = None  # why it cannot be read


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """`takes_bytes` is the whole process while it runs."""

    takes_bytes: int | None
    fits: bool
    failure: str | None


def hub_models() -> Held:
    """Repositories in the Hub cache."""
    try:
        models = hub_cache.local_models()
    except MoecliError as error:
        return Held(failure=str(error).rstrip("."))
    partial = [model.partial_bytes for model in models if model.partial_bytes]
    return Held(len(models), sum(model.bytes for model in models), len(partial), sum(partial))


def packed_models() -> tuple[Held, Sequence[LocalStore]]:
    """Packed stores, and those of them that are complete."""
    try:
        hub_cache.children(settings.stores())
        found = stores.local_stores()
    except MoecliError as error:
        return Held(failure=str(error).rstrip(".")), ()
    except OSError as error:
        return Held(failure=f"'{error.filename}' cannot be read: {error.strerror}"), ()
    partial = [store.bytes for store in found if not store.complete]
    complete = [store for store in found if store.complete]
    return Held(len(found), sum(store.bytes for store in found), len(partial), sum(partial)), complete


def built_in(budget: int) -> BuiltIn:
    """Open the model inside the package, without reading its weights, and plan it for `budget` bytes."""
    try:
        from moecli.store.source import open_source
        from moecli.text.tokenizer import Tokenizer

        folder = resolve.built_in().weights
        weights = open_source(folder)
        Tokenizer.load(folder)
    except (MoecliError, ImportError, OSError) as error:
        return BuiltIn(None, False, str(error))
    plan = fit(weights.spec, weights.dtype, weights.spec.context_length, budget)
    return BuiltIn(plan.full_ram, plan.fits, None)

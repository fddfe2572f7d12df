"""Which weights on this machine a MODEL means: a packed store of it, or the checkpoint itself."""

from __future__ import annotations

import logging
from dataclasses import replace

from moecli.errors import ModelNotFound
from moecli.library import resolve as hub
from moecli.library import stores

_LOG = logging.getLogger(__name__)


def resolve(model: str, dtype: str = "auto") -> hub.Source:
    """Like `hub.resolve`, but a bare name prefers its packed store: the one in `dtype`, else any.

    A format that no store has is taken from the checkpoint, where that is here. Stores go by their own names too.
    """
    try:
        source = hub.resolve(model)
    except ModelNotFound:
        store = stores.find(model)
        if store is None:
            raise
        _LOG.info("%s is the packed store %s: %s", model, store.name, store.path)
        return hub.Source(store.name, folder=store.path)
    if hub.is_path(model) or "@" in model:
        return source
    wanted = None if dtype == "auto" else dtype
    store = stores.find(source.name, wanted) or (stores.find(source.repo, wanted) if source.repo else None)
    if store is None or (wanted is not None and store.dtype != wanted and source.folder is not None):
        return source
    _LOG.info("%s is the packed store %s: %s", model, store.name, store.path)
    return replace(source, name=store.name, folder=store.path, repo=None)

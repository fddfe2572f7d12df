"""The models in memory: which are loaded side by side, how long each stays, and who goes when another one is wanted."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

import torch

from moecli import settings
from moecli.engine.device import free_vram
from moecli.engine.loaded import OpenedModel
from moecli.errors import NotEnoughMemory
from moecli.library.resolve import ModelRef
from moecli.planning import machine
from moecli.serve.models import Identity, OpenSession, Placed, ResidentModel, as_good, identity, load, placed
from moecli.store.progress import Progress

_LOG = logging.getLogger(__name__)
Loading = Callable[[str], AbstractContextManager[Progress]]  # how far it is, told to whom it concerns


class Residents:
    """Loaded models, the one that was used longest ago first. The engine's thread changes them, any may look.

    A model is loaded beside others where it then runs as it would alone: in the same format, from the same place. Else
    those that nobody uses go first, and it waits for those that somebody does.
    """

    def __init__(self, texts: int | None, loading: Loading, session: OpenSession | None = None) -> None:
        """`texts`: how many grow side by side in each; None: as the model allows. `session`: of the one model."""
        self._texts, self._loading, self._session = texts, loading, session
        self._models: dict[Identity, ResidentModel] = {}
        self._expires: dict[Identity, float] = {}  # by time.monotonic()

    def __iter__(self) -> Iterator[ResidentModel]:
        return iter(list(self._models.values()))

    def find(self, ref: ModelRef) -> ResidentModel | None:
        """The model, if it is loaded; it counts as used."""
        key = identity(ref)
        found = self._models.pop(key, None)
        if found is not None:
            self._models[key] = found
        return found

    def expires_s(self, model: ResidentModel) -> float:
        """Seconds until a model goes, if nobody asks for it; infinite if it stays."""
        return self._expires.get(identity(model.ref), 0.0) - time.monotonic()

    def keep(self, ref: ModelRef, seconds: float) -> bool:
        """Let a model stay so long from now: whether it is loaded."""
        if identity(ref) not in self._models:
            return False
        self._expires[identity(ref)] = time.monotonic() + seconds
        return True

    def expire(self, busy: Collection[Identity]) -> float:
        """Unload those whose time is over, but the `busy` ones; seconds until the next one goes."""
        for key in [key for key, when in self._expires.items() if when <= time.monotonic() and key not in busy]:
            self._unload(key)
        return min(self._expires.values(), default=float("inf")) - time.monotonic()

    def load(self, opened: OpenedModel, busy: Collection[Identity], told: Progress) -> ResidentModel | None:
        """Load a model that is not, whatever has to go for it; None while that is in use.

        NotEnoughMemory if it does not fit where it is alone.
        """
        alone = self._placed(opened, ())
        if busy and not self._beside(opened, alone, busy):
            return None
        while self._models and not self._beside(opened, alone, self._models):
            self._unload(next(key for key in self._models if key not in busy))
        place = self._beside(opened, alone, self._models) if self._models else self._placed(opened, ())
        assert place is not None
        with self._loading(opened.name) as progress:

            def both(done: int, total: int) -> None:
                told(done, total)
                progress(done, total)

            torch.set_num_threads(opened.team.most)
            model = load(place, both, self._session)
        self._models[identity(opened.ref)] = model
        return model

    def unload_all(self) -> None:
        """Nothing is loaded any more."""
        for key in list(self._models):
            self._unload(key)

    def _beside(self, opened: OpenedModel, alone: Placed, others: Collection[Identity]) -> Placed | None:
        """Where the model goes beside these others; None where it would not be as good as alone."""
        with suppress(NotEnoughMemory):
            beside = self._placed(opened, others)
            return beside if as_good(beside.plan, alone.plan) else None
        return None

    def _placed(self, opened: OpenedModel, others: Collection[Identity]) -> Placed:
        """The model within what others leave of the budgets, by their plans: caches that are still empty count."""
        options, plans = opened.options, [self._models[key].loaded.plan for key in others]
        ram = machine.free_ram() if options.ram is None else options.ram
        ram -= sum(plan.ram.total - plan.ram.process for plan in plans)
        vram = opened.vram
        if vram is not None:
            free = [self._models[key].loaded.plan for key in self._models if key not in others]
            if options.vram is None:  # measured, so that what is loaded is taken already
                vram = free_vram(opened.asked_device) + sum(plan.device.total for plan in free)
            else:
                vram = options.vram - sum(plan.device.total for plan in plans)
        return placed(replace(opened, ram=max(0, ram), vram=vram), self._texts)

    def _unload(self, key: Identity) -> None:
        model = self._models.pop(key)
        self._expires.pop(key, None)
        _LOG.info("unloaded %s", model.loaded.name)
        model.close()
        del model
        gc.collect()
        settings.return_freed_memory()

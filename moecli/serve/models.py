"""The models that a server may be asked for: found by name, opened, and one of them loaded with its caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moecli.engine.loaded import LoadedModel, OpenedModel
from moecli.engine.prefixes import Slots, reading_of
from moecli.engine.session_file import SessionFile
from moecli.errors import ModelNotFound, MoecliError, NotEnoughMemory, printable
from moecli.kernels.blocking import MAX_TOKENS
from moecli.library import listing
from moecli.library.resolve import Kind, ModelRef, resolve
from moecli.planning.memory import default_context
from moecli.planning.placement import Plan
from moecli.store.progress import Progress

OpenSession = Callable[[LoadedModel], SessionFile | None]
_HERE = (Kind.BUILT_IN, Kind.STORE, Kind.CACHE)
_SMALL = 8  # caches may take one part in so many of a budget that all experts do not fit in


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the APIs list it."""

    name: str
    ref: ModelRef
    bytes: int
    format: str
    changed: float  # seconds since 1970


class ServedModels:
    """Either the models that were named, or all that are on this machine."""

    def __init__(self, named: Sequence[ModelRef], dtype: str) -> None:
        """`dtype` is that of models that are found by a client's word."""
        self._named, self._dtype = named, dtype

    def find(self, name: str) -> ModelRef:
        """What a client's word means. ModelNotFound, which tells no paths, if it is none of the models here."""
        word = name.removesuffix(":latest")
        for ref in self._named:
            if word in (ref.name, ref.typed):
                return ref
        found = None
        if not self._named:
            with suppress(MoecliError):
                found = resolve(word, dtype=self._dtype)
        if found is None or found.kind not in _HERE or found.by_path:  # a client names no files
            here = ", ".join(each.name for each in self.all()) or "none"
            raise ModelNotFound(
                f"the model '{printable(name, 80)}' is not served", f"these are: {printable(here, 400)}"
            )
        return found

    def all(self) -> Iterator[ServedModel]:
        """Every model by name."""
        if self._named:
            yield from map(_named, self._named)
            return
        for model in listing.here():
            if model.complete and not model.damaged:
                with suppress(MoecliError):
                    ref = resolve(model.name, dtype=self._dtype)
                    yield ServedModel(model.name, ref, model.bytes, model.format, model.path.stat().st_mtime)


def _named(ref: ModelRef) -> ServedModel:
    files = [file.stat() for file in ref.weights.iterdir() if file.is_file()]
    known = {model.path: model.format for model in listing.here()}
    size, changed = sum(file.st_size for file in files), max((file.st_mtime for file in files), default=0.0)
    return ServedModel(ref.name, ref, size, known.get(ref.weights, ref.dtype), changed)


Identity = tuple[Path | None, str, Path | None]


def identity(ref: ModelRef) -> Identity:
    """What two names of the same model in the same format have in common."""
    return ref.folder, ref.dtype, ref.tokenizer


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """The model that is loaded, and the caches of texts that are generated side by side."""

    loaded: LoadedModel
    slots: Slots

    @property
    def ref(self) -> ModelRef:
        return self.loaded.opened.ref

    def close(self) -> None:
        """What was read is safe in the session, if there is one."""
        if (file := self.slots.file) is not None:
            file.close()


def context_of(opened: OpenedModel) -> int:
    """Tokens that a text may have, prompt and answer together."""
    return opened.options.context or default_context(opened.spec)


@dataclass(frozen=True, slots=True)
class Placed:
    """A model that is not yet loaded, where it goes, and how many texts grow side by side in it."""

    opened: OpenedModel
    plan: Plan
    texts: int


def placed(opened: OpenedModel, texts: int | None) -> Placed:
    """Within the budgets of `opened`, for `texts` side by side (None: as many as cost little).

    More than one, unless their caches take experts' place. NotEnoughMemory if it does not fit.
    """
    context = context_of(opened)
    if texts is not None:
        return Placed(opened, opened.plan(context, texts), texts)
    alone = opened.plan(context)
    for count in (MAX_TOKENS, MAX_TOKENS // 2, MAX_TOKENS // 4):
        with suppress(NotEnoughMemory):
            plan = opened.plan(context, count)
            same = plan.memory.dtype == alone.memory.dtype and plan.runs_from == alone.runs_from
            if same and (plan.fits or plan.memory.kv.bytes * _SMALL <= opened.ram):
                return Placed(opened, plan, count)
    return Placed(opened, alone, 1)


def as_good(plan: Plan, alone: Plan) -> bool:
    """Whether a model runs by a plan beside others as it does alone: in the same format, and not slower to speak of."""
    same = plan.memory.dtype == alone.memory.dtype and plan.runs_from == alone.runs_from
    return same and (plan.fits or (alone.ram_budget - plan.ram_budget) * _SMALL <= alone.ram_budget)


def load(place: Placed, progress: Progress, session: OpenSession | None = None) -> ResidentModel:
    """Read a model's weights, and reserve the caches of its texts; `session` opens what keeps what is read."""
    loaded = place.opened.load(place.plan, progress)
    decoder, first = loaded.decoder, loaded.cache
    caches = [first, *(decoder.new_cache(first.capacity, first.chunk) for _ in range(place.texts - 1))]
    file = None if session is None else session(loaded)
    return ResidentModel(loaded, Slots(caches, reading_of(decoder, first, place.plan.fits, short=True), file))

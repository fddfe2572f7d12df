"""How a model can be had and run on this machine: in which format, what that takes, and what to type for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moecli import settings
from moecli.errors import ModelNotFound, MoecliError
from moecli.formats import stored_as
from moecli.hub import cache as hub_cache
from moecli.library import inspection
from moecli.library.inspection import Report
from moecli.library.resolve import Kind, ModelRef, known
from moecli.model import catalog, params
from moecli.model.spec import ModelSpec
from moecli.planning import choice
from moecli.planning.estimate import Budget, Estimate, estimate_one
from moecli.planning.memory import default_context
from moecli.planning.placement import Plan
from moecli.store.filesystem import free_space
from moecli.units import format_bytes

_SHARDS = 10**10  # bytes of two usual ones, which lie beside the store that they are packed into


@dataclass(frozen=True, slots=True)
class Way:
    """A model in one format on this machine, and what that takes of network and disk, in bytes.

    `packed`: in a store of its own, whose experts can stay on disk.
    """

    estimate: Estimate
    packed: bool
    fetch: int
    keep: int
    room: int  # on the disk, at most
    free: int

    @property
    def dtype(self) -> str:
        return self.estimate.memory.dtype

    @property
    def plan(self) -> Plan:
        return self.estimate.plan

    @property
    def runs(self) -> bool:
        """Whether this memory is enough: what is not packed must fit."""
        return self.plan.fits or (self.packed and self.plan.runs)

    @property
    def has_room(self) -> bool:
        """Whether the disk is enough."""
        return self.room <= self.free


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do with a model here. `way` is the format to take; None where this memory holds none."""

    ref: ModelRef
    spec: ModelSpec
    lacks: tuple[str, ...]  # what the engine lacks for it
    budget: Budget
    ways: tuple[Way, ...]  # the most precise first
    way: Way | None
    here: bool  # whether this machine's disk counts

    @property
    def obstacle(self) -> str | None:
        """Why no machine runs it, as a sentence; None if one does."""
        if self.ref.folder is None and self.ref.entry is not None and self.ref.repo is None:
            return f"no weights of '{self.ref.name}' were ever published"
        return f"this version cannot run '{self.ref.name}': it lacks {', '.join(self.lacks)}" if self.lacks else None

    @property
    def possible(self) -> bool:
        """Whether it runs here, and the disk has room for it."""
        return self.obstacle is None and self.way is not None and (self.way.has_room or not self.here)

    @property
    def command(self) -> str | None:
        """What comes next: to fetch it, to pack it, or to run it. None where it cannot be run, or lies nowhere."""
        if self.way is None or self.obstacle:
            return None
        if self.ref.folder is None:
            return fetching(self.ref, self.way) if self.ref.repo else None
        packing = self.way.packed and self.ref.kind is not Kind.STORE
        return f"moecli pack {self.ref.typed} --dtype {self.way.dtype}" if packing else f"moecli run {self.ref.typed}"


def advise(
    ref: ModelRef,
    spec: ModelSpec,
    lacks: tuple[str, ...],
    budget: Budget,
    dtype: str = "auto",
    context: int | None = None,
    batch: int = 1,
    fetch: int | None = None,
    here: bool = True,
    kept: str | None = None,
) -> Advice:
    """`dtype`: the format asked for. `kept`: the quantised one that it is published in.

    `fetch`: the bytes that the Hub names, where it was asked.

    `here`: for this machine, whose disk counts; else for any with this memory.
    """
    stored = kept or stored_as(spec.stored_dtype)
    names = choice.automatic(stored) if dtype == "auto" else (dtype,)
    context = context or default_context(spec)
    every = {name: estimate_one(spec, budget, name, context, batch) for name in dict.fromkeys((stored, *names))}
    published = every[stored].memory.weights if fetch is None else fetch
    ways = [_way(ref, every[name], stored, published) for name in names]
    if ref.folder is not None and ref.kind is not Kind.STORE:
        least = every[names[-1]]  # to be packed, if it cannot run unpacked
        ways.append(Way(least, True, 0, least.memory.weights, least.memory.weights, free_space(settings.stores())))
    way = _choose([way for way in ways if way.has_room or not here]) or _choose(ways)
    return Advice(ref, spec, lacks, budget, tuple(ways), way, here)


def advice_on(ref: ModelRef, dtype: str = "auto", ram: str | None = None, context: int | None = None) -> Advice | None:
    """The same by what is known here, without a network; None of a model of which nothing is."""
    try:
        report = inspection.inspect(ref)
    except MoecliError:  # nothing, or half a download, whose configuration may be that of anything
        if ref.entry is None:
            return None
        report = inspection.inspect(known(ref.entry.alias))
    return advise_on_report(ref, report, dtype, Budget.of(ram), context)


def advise_on_report(
    ref: ModelRef,
    report: Report,
    dtype: str = "auto",
    budget: Budget | None = None,
    context: int | None = None,
    batch: int = 1,
    here: bool = True,
) -> Advice:
    """The same of a model that was inspected. `budget`: None for what is free now."""
    packed = report.inventory.format if ref.kind is Kind.STORE and report.inventory is not None else dtype
    fetch = report.stored.bytes if report.stored and ref.folder is None else None
    return advise(
        ref, report.spec, report.lacks, budget or Budget.of(), packed, context, batch, fetch, here, report.kept
    )


def pull_estimate(ref: ModelRef, dtype: str | None) -> Advice | None:
    """What a pull would take by what is known here: of the files as they are, or packed to `dtype` on the way."""
    found = advice_on(ref, "auto" if dtype is None else dtype)
    if found is None or ref.repo is None:
        return None
    way = found.ways[0]
    if dtype is None:
        way = replace(way, packed=False, keep=way.fetch, room=way.fetch, free=free_space(settings.hub_cache()))
    return replace(found, ways=(way,))


def fetching(ref: ModelRef, way: Way | None) -> str:
    """The command that fetches a model; packed on the way, where it runs so."""
    at = f"@{ref.revision}" if ref.revision and "@" not in ref.name else ""
    packing = way is not None and way.packed and ref.variant is None  # GGUF is packed once it is here
    return f"moecli pull {ref.name}{at}" + (f" --dtype {way.dtype}" if way is not None and packing else "")


def missing(ref: ModelRef, advice: Advice | None) -> ModelNotFound:
    """Why there is nothing to run, and the command that would work here; without advice, the plain one."""
    if advice is not None and advice.obstacle:
        return ModelNotFound(advice.obstacle, _instead(advice))
    absence = _absence(ref)
    if advice is None:
        return ModelNotFound(absence, fetching(ref, None))
    if not advice.possible and (other := _in_any_format(advice)).possible:
        assert other.way is not None
        hint = f"in {other.way.dtype} it runs here: {fetching(ref, other.way)}"
        return ModelNotFound(f"{absence}, and {_shortage(advice)}", hint)
    if advice.way is None:
        return ModelNotFound(f"{absence}, and {_shortage(advice)}", _instead(advice))
    if not advice.way.has_room:
        return ModelNotFound(f"{absence}, and {_shortage(advice)}", _larger_disk(advice))
    return ModelNotFound(absence, fetching(ref, advice.way))


def too_large(advice: Advice) -> str:
    """Why this memory holds the model in no format."""
    least = min((way.plan for way in advice.ways), key=lambda plan: min(plan.least_ram, plan.full_ram))
    size = format_bytes(min(least.least_ram, least.full_ram))
    return f"{least.memory.dtype} takes {size} of RAM at least, and the budget is {format_bytes(least.ram_budget)}"


def no_room(way: Way) -> str:
    """What is missing of the disk."""
    return f"{way.dtype} takes {format_bytes(way.room)} at most meanwhile, and {format_bytes(way.free)} are free"


def nearest(advice: Advice) -> Advice | None:
    """The model of the catalog, most like this one in size, that can be fetched and run here."""
    counts = params.count(advice.spec)

    def distance(entry: catalog.Entry) -> float:
        total = _figure(entry.published.total if entry.published else None)
        active = _figure(entry.published.active if entry.published else None) or total
        return abs(math.log(total / counts.total)) + abs(math.log(active / counts.active)) if total else math.inf

    others = [each for each in catalog.known() if each.kind == "moe" and each.repo and not each.alias.endswith("-base")]
    for entry in sorted(others, key=distance):
        ref = ModelRef(entry.alias, entry.alias, Kind.CATALOG, repo=entry.repo, revision=entry.revision, entry=entry)
        report = inspection.inspect(ref)
        if entry != advice.ref.entry and not report.lacks:
            other = advise(ref, report.spec, report.lacks, advice.budget, here=advice.here)
            if other.possible:
                return other
    return None


def _figure(printed: str | None) -> float:
    found = params.read_figure(printed or "")
    return 0.0 if found is None else int(found[0]) * 10.0 ** found[1]


def _way(ref: ModelRef, one: Estimate, stored: str, published: int) -> Way:
    """What is here is run as it is; what is not is packed on its way, unless it is to be as published and fits."""
    size = one.memory.weights
    if ref.folder is not None:
        return Way(one, ref.kind is Kind.STORE, 0, 0, 0, 0)
    if one.memory.dtype == stored and one.plan.fits:
        return Way(one, False, published, published, published, free_space(settings.hub_cache()))
    return Way(one, True, published, size, size + min(published, _SHARDS), free_space(settings.stores()))


def _choose(ways: Sequence[Way]) -> Way | None:
    plan = choice.best([way.plan for way in ways], [way.plan for way in ways if way.packed])
    return next((way for way in ways if way.plan is plan and way.runs), None)


def _instead(advice: Advice) -> str | None:
    other = nearest(advice)
    return None if other is None else f"the nearest model that runs here: {other.command}"


def _shortage(advice: Advice) -> str:
    """What there is too little of."""
    if advice.way is None:
        return f"would not run here: {too_large(advice)}"
    return f"the disk is too small for it: {no_room(advice.way)}"


def _in_any_format(advice: Advice) -> Advice:
    return advise(advice.ref, advice.spec, advice.lacks, advice.budget, here=advice.here)


def _larger_disk(advice: Advice) -> str:
    assert advice.way is not None
    variable = "MOECLI_HOME" if advice.way.packed else "HF_HOME"
    return f"set {variable} to a folder on a larger disk, then {fetching(advice.ref, advice.way)}"


def _label(ref: ModelRef) -> str:
    return f"model '{ref.name}'" + (f" ({ref.repo})" if ref.name != ref.repo else "")


def _absence(ref: ModelRef) -> str:
    """What of a repository of the Hub is here."""
    label, repo = _label(ref), ref.repo or ref.name
    partial = next(iter(hub_cache.snapshots(repo, ref.revision)), None)
    if partial is not None:
        return f"{label} is only partly on this machine: {hub_cache.lack(partial)}"
    if ref.revision is not None:
        return f"{label} is not on this machine at revision {ref.revision}"
    blobs = hub_cache.children(hub_cache.repository(repo) / "blobs")
    if any(blob.suffix == hub_cache.UNFINISHED for blob in blobs):
        return f"{label} is only partly on this machine: its download was not finished"
    return f"{label} is not on this machine"

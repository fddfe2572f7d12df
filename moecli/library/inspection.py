"""One model -> a report of all that can be known without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moecli.checkpoint.files import container, names_in
from moecli.checkpoint.folder import Checkpoint
from moecli.checkpoint.gguf import noted_file
from moecli.checkpoint.inventory import Inventory, take_inventory
from moecli.checkpoint.stored import StoredTensor
from moecli.errors import NetworkError, reading
from moecli.formats import GROUPED, stored_as
from moecli.library.resolve import Kind, ModelRef, known
from moecli.model import catalog, families, params
from moecli.model.params import Counts, Explanation
from moecli.model.spec import ModelSpec, lacks
from moecli.planning import memory
from moecli.store.packed import PackedStore

REFERENCE = "llama-2-70b"  # what costs are compared with when no dense model is among the arguments


@dataclass(frozen=True, slots=True)
class Report:
    """The facts of one model. `inventory` is there where the headers of its weights were read."""

    model: str
    source: Kind  # of the facts
    location: str  # a path, a repository, or the catalog
    revision: str | None
    spec: ModelSpec
    counts: Counts
    kv_bytes_per_token: int
    read_bytes_per_token: int  # in bf16
    stored_read_bytes_per_token: int | None  # as stored, where that is known
    entry: catalog.Entry | None = None
    explanation: Explanation | None = None
    inventory: Inventory | None = None
    fallback: str | None = None  # why the Hub's answer is not what is shown, where it was asked
    unread: str | None = None  # why its weights cannot be read, where only config.json could

    @property
    def quantised(self) -> str | None:
        """How the weights are quantised: by the headers where they were read, else by the word of config.json."""
        return self.spec.quantization if self.inventory is None else self.inventory.quantised

    @property
    def kept(self) -> str | None:
        """The quantised format, of those kept as they are published, that most of it is in; None where it is none."""
        name = "" if self.inventory is None else self.inventory.format.lower()
        return name if name in GROUPED else None

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the engine lacks to run this model as it is stored."""
        found = lacks(self.spec, self.quantised)
        return (*found, "a reader of its weights") if self.unread else found

    @property
    def runnable(self) -> bool:
        return not self.lacks

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the counts should know."""
        if self.unread:
            return (*self.spec.notes, f"{self.unread}: counted from config.json")
        plain = self.inventory is not None and self.source is not Kind.STORE and self.inventory.quantised is None
        if plain and self.spec.quantization is not None:
            leftover = f"config.json says that the weights are {self.spec.quantization}, but none is"
            return (*self.spec.notes, leftover)
        return self.spec.notes

    @property
    def stored(self) -> catalog.Stored | None:
        """What the weights take as they are published, from their headers or from the catalog."""
        if self.inventory is not None:
            return catalog.Stored(self.inventory.bytes, self.inventory.format)
        return self.entry.stored if self.entry is not None and self.source is Kind.CATALOG else None

    @property
    def bits_per_weight(self) -> float | None:
        """Of what is counted, scales and all; None where its files are not known."""
        if self.inventory is not None and self.inventory.parameters:
            apart = sum(part.bytes for part in self.inventory.excluded)
            return 8 * (self.inventory.bytes - apart) / self.inventory.parameters
        return 8 * self.stored.bytes / self.counts.total if self.stored else None

    @property
    def dense(self) -> bool:
        return self.counts.experts == 1 and not self.spec.mixtures


def inspect(ref: ModelRef, ask_hub: bool = False) -> Report:
    """The facts of a model: from the files on this machine, the Hub if it may be asked, or the catalog."""
    if ref.folder is not None:
        return _from_folder(ref, ref.folder)
    if ask_hub and ref.repo is not None:
        try:
            return _from_hub(ref, ref.repo)
        except NetworkError as error:
            entry = ref.entry or catalog.port(ref.repo)
            if entry is None or ref.revision != entry.revision:
                raise
            return replace(inspect(ref if ref.entry else known(entry.alias)), fallback=error.message)
    if ref.file is not None:
        kind = Kind.CACHE if ref.repo else Kind.CONFIG
        return _report(ref, kind, str(ref.file), ref.revision, families.load_config(ref.file))
    if ref.entry is not None:
        return _report(ref, Kind.CATALOG, ref.entry.repo or "the catalog", ref.revision, ref.entry.config())
    if ref.repo is not None:
        raise NetworkError(
            f"'{ref.repo}' is not on this machine, and the network is not to be used",
            "leave out --offline (and unset HF_HUB_OFFLINE), or name a folder or an alias",
        )
    raise ref.missing()


def dense_reference(reports: list[Report]) -> Report:
    """What to measure the cost of a token against: the first dense model named, else Llama 2 70B."""
    return next((report for report in reports if report.dense), None) or inspect(known(REFERENCE))


def _from_folder(ref: ModelRef, folder: Path) -> Report:
    if ref.kind is Kind.STORE:
        return _from_store(ref, PackedStore.open(folder))
    config = families.load_config(folder / "config.json")
    with reading(folder):
        names = names_in(folder)
        whole = noted_file(folder) is not None or any(map(container(names).holds, names))
        tensors = Checkpoint.open(folder).tensors if whole else None
    if tensors is None:
        return _report(ref, Kind.CONFIG, str(folder / "config.json"), None, config)
    return _report(ref, ref.kind, str(ref.file or folder), ref.commit, config, tensors)


def _from_store(ref: ModelRef, store: PackedStore) -> Report:
    report = _report(
        ref, Kind.STORE, str(store.folder), store.source.revision, families.load_config(store.folder / "config.json")
    )
    read = memory.read_bytes_per_token(store.spec, store.dtype)
    inventory = Inventory(report.counts.total, store.bytes, store.dtype, read, (), ())
    return replace(report, stored_read_bytes_per_token=read, inventory=inventory)


def _from_hub(ref: ModelRef, repo: str) -> Report:
    from moecli.hub.headers import read_remote
    from moecli.hub.manifest import list_files, read_manifest

    if ref.variant is not None:
        found = read_manifest(repo, ref.revision, variant=ref.variant)
        return _report(ref, Kind.HUB, f"{repo}/{found.weights[0].name}", found.commit, found.config, found.tensors)
    remote = read_remote(repo, ref.revision, partial(list_files, repo))
    report = _report(ref, Kind.HUB, repo, remote.commit or ref.revision, remote.config, remote.tensors)
    return replace(report, unread=remote.unread)


def _report(
    ref: ModelRef,
    kind: Kind,
    location: str,
    revision: str | None,
    config: Mapping[str, Any],
    header: Mapping[str, StoredTensor] | None = None,
) -> Report:
    family = families.find(config)
    spec = family.read(config)
    counts = params.count(spec)
    entry = ref.entry or (catalog.port(ref.repo) if ref.repo else None)
    published = entry.published if entry else None
    scheme = families.quantization_scheme(config)
    inventory = take_inventory(header, family, spec, counts, scheme) if header else None
    return Report(
        model=ref.name,
        source=kind,
        location=location,
        revision=revision,
        spec=spec,
        counts=counts,
        kv_bytes_per_token=memory.kv_bytes_per_token(spec),
        read_bytes_per_token=memory.read_bytes_per_token(spec, "bf16"),
        stored_read_bytes_per_token=inventory.read_bytes_per_token if inventory else _as_stored(spec),
        entry=entry,
        explanation=params.explain_published(counts, published.total, published.active) if published else None,
        inventory=inventory,
    )


def _as_stored(spec: ModelSpec) -> int | None:
    """Without headers only plain formats are known to the byte."""
    plain = spec.stored_dtype in ("float32", "float16", "bfloat16") and spec.quantization is None
    return memory.read_bytes_per_token(spec, stored_as(spec.stored_dtype)) if plain else None

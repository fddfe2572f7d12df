"""One model -> a report of all that can be known without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moecli.checkpoint.inventory import Inventory, take_inventory
from moecli.checkpoint.safetensors import Checkpoint, StoredTensor
from moecli.errors import NetworkError
from moecli.formats import stored_as
from moecli.library import resolve as hub
from moecli.model import catalog, families, params
from moecli.model.params import Counts, Explanation
from moecli.model.spec import ModelSpec
from moecli.planning import memory
from moecli.store import manifest
from moecli.store.packed import PackedStore

REFERENCE = "llama-2-70b"  # what costs are compared with when no dense model is among the arguments

Kind = Literal["built-in", "catalog", "config", "folder", "cache", "hub", "store"]


@dataclass(frozen=True, slots=True)
class Report:
    """The facts of one model. `inventory` is there where the headers of its weights were read."""

    model: str
    source: Kind
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

    @property
    def runnable(self) -> bool:
        return not self.spec.unsupported

    @property
    def dense(self) -> bool:
        return self.counts.experts == 1 and not self.spec.mixtures


def inspect(source: hub.Source, ask_hub: bool = False) -> Report:
    """The facts of a model: from the files on this machine, the Hub if it may be asked, or the catalog."""
    if source.folder is not None:
        return _from_folder(source, source.folder)
    if ask_hub and source.repo is not None:
        try:
            return _from_hub(source, source.repo)
        except NetworkError as error:
            if source.entry is None or source.revision != source.entry.revision:
                raise
            return replace(inspect(source), fallback=error.message)
    if source.config_file is not None:
        kind: Kind = "cache" if source.repo else "config"
        config = families.load_config(source.config_file)
        return _report(source, kind, str(source.config_file), source.revision, config)
    if source.entry is not None:
        return _report(source, "catalog", source.entry.repo or "the catalog", source.revision, source.entry.config())
    if source.repo is not None:
        raise NetworkError(
            f"'{source.repo}' is not on this machine, and the network is not to be used",
            "leave out --offline (and unset HF_HUB_OFFLINE), or name a folder or an alias",
        )
    hub.require_folder(source)  # says what is missing
    raise AssertionError("a source without a folder is refused above")


def dense_reference(reports: list[Report]) -> Report:
    """What to measure the cost of a token against: the first dense model named, else Llama 2 70B."""
    return next((report for report in reports if report.dense), None) or inspect(hub.Source(REFERENCE, entry=_known()))


def _known() -> catalog.Entry | None:
    return catalog.find(REFERENCE)


def _from_folder(source: hub.Source, folder: Path) -> Report:
    if (folder / manifest.FILE).is_file():
        return _from_store(source, PackedStore.open(folder))
    kind: Kind = "cache" if source.repo else "built-in" if source.name == catalog.BUILT_IN else "folder"
    config = families.load_config(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        return _report(source, "config", str(folder / "config.json"), None, config)
    return _report(source, kind, str(folder), source.commit, config, Checkpoint.open(folder).tensors)


def _from_store(source: hub.Source, store: PackedStore) -> Report:
    report = _report(
        source, "store", str(store.folder), store.source.revision, families.load_config(store.folder / "config.json")
    )
    read = memory.read_bytes_per_token(store.spec, store.dtype)
    inventory = Inventory(report.counts.total, store.bytes, store.dtype, read, (), ())
    return replace(report, stored_read_bytes_per_token=read, inventory=inventory)


def _from_hub(source: hub.Source, repo: str) -> Report:
    from moecli.hub.headers import read_remote

    remote = read_remote(repo, source.revision)
    return _report(source, "hub", repo, remote.commit or source.revision, remote.config, remote.tensors)


def _report(
    source: hub.Source,
    kind: Kind,
    location: str,
    revision: str | None,
    config: Mapping[str, Any],
    header: Mapping[str, StoredTensor] | None = None,
) -> Report:
    family = families.find(config)
    spec = family.read(config)
    counts = params.count(spec)
    published = source.entry.published if source.entry else None
    inventory = take_inventory(header, family, spec, counts) if header else None
    return Report(
        model=source.name,
        source=kind,
        location=location,
        revision=revision,
        spec=spec,
        counts=counts,
        kv_bytes_per_token=memory.kv_bytes_per_token(spec),
        read_bytes_per_token=memory.read_bytes_per_token(spec, "bf16"),
        stored_read_bytes_per_token=inventory.read_bytes_per_token if inventory else _as_stored(spec),
        entry=source.entry,
        explanation=params.explain_published(counts, published.total, published.active) if published else None,
        inventory=inventory,
    )


def _as_stored(spec: ModelSpec) -> int | None:
    """Without headers only plain formats are known to the byte."""
    plain = spec.stored_dtype in ("float32", "float16", "bfloat16") and spec.quantization is None
    return memory.read_bytes_per_token(spec, stored_as(spec.stored_dtype)) if plain else None

"""What a pull would do, before it does it: bytes to fetch, room on the disk, and how the model will run here."""

from __future__ import annotations

from dataclasses import dataclass

from moecli.errors import ModelNotFound
from moecli.hub.download import free_space, present
from moecli.hub.manifest import Manifest, read_manifest
from moecli.hub.retry import Tell
from moecli.library import resolve as hub
from moecli.model import families
from moecli.model.spec import ModelSpec
from moecli.planning.estimate import Budget, Estimate, estimate
from moecli.units import format_bytes

_MOST_OF_DISK = 0.9


@dataclass(frozen=True, slots=True)
class Proposal:
    """One pull. `present` counts bytes that are here already, those of unfinished downloads too."""

    name: str
    manifest: Manifest
    present: int
    room: int  # bytes that the disk must still have
    free: int
    spec: ModelSpec
    estimate: Estimate  # in the format it will be in, on this machine

    @property
    def missing(self) -> int:
        return self.manifest.bytes - self.present

    @property
    def doubts(self) -> list[str]:
        """Reasons to ask before fetching."""
        plan = self.estimate.plan
        doubts = []
        if self.room > _MOST_OF_DISK * self.free:
            doubts.append(f"it takes {format_bytes(self.room)} of the {format_bytes(self.free)} that are free")
        if not plan.runs:
            least = format_bytes(min(plan.full_ram, plan.least_ram))
            doubts.append(f"it needs {least} of RAM at least, and {format_bytes(plan.ram_budget)} are free here")
        if self.spec.unsupported:
            doubts.append(f"this version cannot run it: {self.spec.lacks[0]}")
        return doubts


def propose(source: hub.Source, tell: Tell | None = None, dtype: str = "auto") -> Proposal:
    """Ask the Hub about a model; "auto" is as it is stored.

    ModelNotFound for what is no Hub model, ConfigError for an unknown family.
    """
    if source.repo is None:
        raise _nothing_to_pull(source)
    manifest = read_manifest(source.repo, source.revision, tell=tell)
    spec = families.find(manifest.config).read(manifest.config)
    result = estimate(source.name, spec, Budget.of(), dtype, None, 1, find_context=False)
    here = sum(present(manifest, file) for file in manifest.files)
    room = manifest.bytes - here
    return Proposal(source.name, manifest, here, room, free_space(manifest.root), spec, result.chosen)


def _nothing_to_pull(source: hub.Source) -> ModelNotFound:
    if source.entry is not None:
        return ModelNotFound(f"no weights of '{source.name}' were ever published", f"moecli inspect {source.name}")
    if source.folder is not None:
        return ModelNotFound(f"'{source.name}' is on this machine already", f"it lies in {source.folder}")
    return ModelNotFound(f"'{source.name}' is no model of the Hub", "type an alias or a Hub id as org/name")

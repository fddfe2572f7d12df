"""What a pull would do, before it does it: bytes to fetch, room on the disk, and how the model will run here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moecli.errors import ModelNotFound
from moecli.hub.download import present
from moecli.hub.manifest import DownloadManifest, read_manifest
from moecli.hub.retry import Tell
from moecli.library.resolve import ModelRef
from moecli.model import families
from moecli.model.spec import ModelSpec
from moecli.planning.estimate import Budget, Estimate, estimate
from moecli.store.filesystem import free_space
from moecli.text.files import TOKENIZERS
from moecli.units import format_bytes

_MOST_OF_DISK = 0.9


@dataclass(frozen=True, slots=True)
class Proposal:
    """One pull. `present` counts bytes that are here already, those of unfinished downloads too."""

    name: str
    manifest: DownloadManifest
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
        if lack := lacks_tokenizer(file.name for file in self.manifest.texts):
            doubts.append(lack)
        if self.spec.unsupported:
            doubts.append(f"this version cannot run it: {self.spec.lacks[0]}")
        return doubts


def lacks_tokenizer(names: Iterable[str]) -> str | None:
    """Why a model with these small files cannot be given text; None if it can."""
    found = sorted(set(names) - {"config.json", "tokenizer_config.json"})
    if not set(TOKENIZERS).isdisjoint(found):
        return None
    other = [name for name in found if name.endswith((".model", ".tiktoken")) or name in ("tekken.json", "vocab.json")]
    return f"it has no tokenizer that can be read{f', only {other[0]}' if other else ''}: moecli run will refuse it"


def propose(ref: ModelRef, tell: Tell | None = None, dtype: str = "auto") -> Proposal:
    """Ask the Hub about a model; "auto" is as it is stored.

    ModelNotFound for what is no Hub model, ConfigError for an unknown family.
    """
    if ref.repo is None:
        raise _nothing_to_pull(ref)
    manifest = read_manifest(ref.repo, ref.revision, tell=tell)
    spec = families.find(manifest.config).read(manifest.config)
    result = estimate(ref.name, spec, Budget.of(), dtype, None, 1, find_context=False)
    here = sum(present(manifest, file) for file in manifest.files)
    room = manifest.bytes - here
    return Proposal(ref.name, manifest, here, room, free_space(manifest.root), spec, result.chosen)


def _nothing_to_pull(ref: ModelRef) -> ModelNotFound:
    if ref.entry is not None:
        return ModelNotFound(f"no weights of '{ref.name}' were ever published", f"moecli inspect {ref.name}")
    if ref.folder is not None:
        return ModelNotFound(f"'{ref.name}' is on this machine already", f"it lies in {ref.folder}")
    return ModelNotFound(f"'{ref.name}' is no model of the Hub", "type an alias or a Hub id as org/name")

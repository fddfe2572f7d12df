"""What a pull would do, before it does it: bytes to fetch, room on the disk, and how the model will run here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from moecli import settings
from moecli.checkpoint.prequantized import quantised_format
from moecli.checkpoint.safetensors import read_header
from moecli.errors import ModelNotFound, MoecliError
from moecli.hub.download import cached, present
from moecli.hub.failures import HubBusy
from moecli.hub.headers import Repository
from moecli.hub.manifest import DownloadManifest, cached_manifest, read_manifest
from moecli.hub.retry import RetryPolicy, Tell, retry
from moecli.library.resolve import ModelRef
from moecli.model import families
from moecli.model.spec import ModelSpec, lacks
from moecli.planning.estimate import Budget, Estimate, estimate
from moecli.store.filesystem import free_space
from moecli.units import format_bytes

_MOST_OF_DISK = 0.9


@dataclass(frozen=True, slots=True)
class Proposal:
    """One pull. `present` counts bytes that are here already, those of unfinished downloads too.

    `unasked` says why the Hub's own list of files is not known: then what the cache holds is taken for all.
    """

    name: str
    manifest: DownloadManifest
    present: int
    room: int  # bytes that the disk must still have
    free: int
    spec: ModelSpec
    estimate: Estimate  # in the format it will be in, on this machine
    quantised: str | None = None  # the format of the weights, where they are not plain numbers
    unasked: str | None = None

    @property
    def missing(self) -> int:
        return self.manifest.bytes - self.present

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the engine lacks to run this model as it is stored."""
        return lacks(self.spec, self.quantised)

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
        if self.lacks:
            doubts.append(f"this version cannot run it: it lacks {', '.join(self.lacks)}")
        return doubts


def propose(ref: ModelRef, tell: Tell | None = None, dtype: str = "auto") -> Proposal:
    """Ask the Hub about a model; "auto" is as it is stored.

    ModelNotFound for what is no Hub model, ConfigError for an unknown family.
    """
    if ref.repo is None:
        raise _nothing_to_pull(ref)
    manifest, unasked = _manifest(ref, ref.repo, tell)
    spec = families.find(manifest.config).read(manifest.config)
    result = estimate(ref.name, spec, Budget.of(), dtype, None, 1, find_context=False)
    here = sum(present(manifest, file) for file in manifest.files)
    room = manifest.bytes - here
    quantised = _quantised(manifest, spec, tell)
    return Proposal(ref.name, manifest, here, room, free_space(manifest.root), spec, result.chosen, quantised, unasked)


def _quantised(manifest: DownloadManifest, spec: ModelSpec, tell: Tell | None) -> str | None:
    """The format of the weights by the header of the largest file; if that cannot be had, by config.json's word."""
    file = max(manifest.weights, key=lambda each: each.size)
    with suppress(MoecliError):
        if (path := cached(manifest, file)) is not None:
            return quantised_format(read_header(path))
        repository = Repository(manifest.repo, manifest.commit)
        if (header := retry(lambda: repository.header(file.name, 0), RetryPolicy(attempts=2), tell=tell)) is not None:
            return quantised_format(header[0])
    return spec.quantization


def _manifest(ref: ModelRef, repo: str, tell: Tell | None) -> tuple[DownloadManifest, str | None]:
    """From the Hub; where it is not to be asked or cannot be reached, from a snapshot in the cache that looks whole."""
    here = ref.folder
    if here is not None and settings.offline():
        return cached_manifest(repo, here), "the network is not to be used"
    try:
        return read_manifest(repo, ref.revision, RetryPolicy(attempts=1) if here else None, tell), None
    except HubBusy as error:
        if here is None:
            raise
        return cached_manifest(repo, here), error.message


def _nothing_to_pull(ref: ModelRef) -> ModelNotFound:
    if ref.entry is not None:
        return ModelNotFound(f"no weights of '{ref.name}' were ever published", f"moecli inspect {ref.name}")
    if ref.folder is not None:
        return ModelNotFound(f"'{ref.name}' is on this machine already", f"it lies in {ref.folder}")
    return ModelNotFound(f"'{ref.name}' is no model of the Hub", "type an alias or a Hub id as org/name")

"""What a pull would do, before it does it: bytes to fetch, room on the disk, and how the model will run here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from moecli import settings
from moecli.checkpoint import gguf_names
from moecli.checkpoint.files import RELEASE, SAFETENSORS
from moecli.checkpoint.prequantized import quantised_among, true_tensors
from moecli.checkpoint.stored import StoredTensor
from moecli.checkpoint.towers import split_towers
from moecli.errors import DiskError, ModelNotFound, MoecliError
from moecli.formats import stored_as
from moecli.hub import download
from moecli.hub.download import headers, present
from moecli.hub.failures import HubBusy
from moecli.hub.manifest import DownloadManifest, cached_manifest, read_manifest
from moecli.hub.retry import RetryPolicy, Tell
from moecli.library.advice import advice_on, advise, missing
from moecli.library.resolve import ModelRef
from moecli.model import catalog, families, params
from moecli.model.spec import ModelSpec, lacks
from moecli.planning import choice
from moecli.planning.estimate import Budget, Estimate, best_of, estimate_one
from moecli.planning.memory import default_context
from moecli.store.filesystem import free_space
from moecli.text.files import tokenizer_among, unread_tokenizers
from moecli.units import format_bytes

_MOST_OF_DISK = 0.9
_LEAST_BYTES = 1.5  # for each number, where they are plain


@dataclass(frozen=True, slots=True)
class Proposal:
    """One pull. `present` counts bytes that are here already, those of unfinished downloads too.

    `packed`: it ends in a store, whose experts can stay on disk; what does not must fit in RAM. `instead` is the
    command for a packed pull that runs here where this one does not, or for which the disk has no room. `unasked` says
    why the Hub's own list of files is not known: then what the cache holds is taken for all.
    """

    name: str
    manifest: DownloadManifest
    present: int
    room: int  # bytes that the disk must still have
    free: int
    spec: ModelSpec
    estimate: Estimate  # in the format it will run in, on this machine
    packed: bool = False
    instead: str | None = None
    quantised: str | None = None  # the format of the weights, where they are not plain numbers
    unasked: str | None = None
    given: bool = False  # whether a tokenizer was given for it

    @property
    def missing(self) -> int:
        return self.manifest.bytes - self.present

    @property
    def runs(self) -> bool:
        """Whether this machine's memory is enough for it."""
        return self.estimate.plan.fits or (self.packed and self.estimate.plan.runs)

    @property
    def has_room(self) -> bool:
        return self.room <= self.free

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the engine lacks to run this model as it is stored."""
        return lacks(self.spec, self.quantised)

    @property
    def own_tokenizer(self) -> str | None:
        """The file that has it, or the repository that supplies it; None where it is to be given."""
        entry = self.manifest.supplied_by
        if self.manifest.tokenizer is not None:
            return self.manifest.tokenizer
        return tokenizer_among([file.name for file in self.manifest.texts]) or (entry.tokenizer if entry else None)

    @property
    def lacks_tokenizer(self) -> str | None:
        """Why it could not be given text; None if it can."""
        if self.given or self.own_tokenizer is not None:
            return None
        return lacks_tokenizer((file.name for file in self.manifest.texts), self.manifest.repo)

    @property
    def doubts(self) -> list[str]:
        """Reasons to ask before fetching."""
        plan = self.estimate.plan
        doubts = []
        if self.room > _MOST_OF_DISK * self.free:
            doubts.append(f"it takes {format_bytes(self.room)} of the {format_bytes(self.free)} that are free")
        if not self.runs:
            least = format_bytes(min(plan.full_ram, plan.least_ram) if self.packed else plan.full_ram)
            how = "" if self.packed else " as it is published"
            doubts.append(
                f"{how} it needs {least} of RAM at least, and {format_bytes(plan.ram_budget)} are free here".strip()
            )
        if self.instead:
            doubts.append(f"packed on the way it runs here: {self.instead}")
        if self.lacks_tokenizer:
            doubts.append(self.lacks_tokenizer)
        if self.lacks:
            doubts.append(f"this version cannot run it: it lacks {', '.join(self.lacks)}")
        return doubts


def lacks_tokenizer(names: Iterable[str], repo: str | None = None) -> str:
    """What to know of a model with these small files, none of which is a tokenizer that can be read."""
    other = "".join(f", only {name}" for name in unread_tokenizers(names)[:1])
    entry = catalog.port(repo) if repo else None
    instance = f" such as {entry.tokenizer or entry.repo}" if entry else ""
    return f"it has no tokenizer that can be read{other}: add --tokenizer with a file, a folder or a Hub id{instance}"


def propose(
    ref: ModelRef,
    tell: Tell | None = None,
    dtype: str = "auto",
    packed: bool = False,
    budget: Budget | None = None,
    context: int | None = None,
) -> Proposal:
    """Ask the Hub about a model; "auto" is as it is stored. `budget`: of the run to come; None: what is free now.

    ModelNotFound for what is no Hub model, ConfigError for an unknown family.
    """
    if ref.repo is None:
        raise _nothing_to_pull(ref)
    manifest, unasked = _manifest(ref, ref.repo, tell)
    if ref.tokenizer is not None and manifest.supplied_by is not None:
        manifest = replace(manifest, supplied_by=replace(manifest.supplied_by, tokenizer=None))
    spec = families.find(manifest.config).read(manifest.config)
    budget, context = budget or Budget.of(), context or default_context(spec)
    stored = stored_as(spec.stored_dtype)
    names = (stored if dtype == "auto" else dtype,) if packed else choice.automatic(stored)
    estimates = [estimate_one(spec, budget, name, context) for name in names]
    chosen = best_of(estimates, streams=packed) or estimates[0]
    here = sum(present(manifest, file) for file in manifest.files)
    pickled = manifest.tensors is None and not all(SAFETENSORS.holds(file.name) for file in manifest.weights)
    if not packed and pickled:
        deque(headers(manifest, tell), maxlen=0)  # refuses a pickle of anything else before it is fetched
    quantised = _quantised(manifest, spec, tell)
    proposal = Proposal(
        ref.name, manifest, here, manifest.bytes - here, free_space(manifest.root), spec, chosen, packed, None,
        quantised, unasked, ref.tokenizer is not None,
    )  # fmt: skip
    if packed or (proposal.runs and proposal.has_room):
        return proposal
    advice = advise(ref, spec, proposal.lacks, budget, context=context, fetch=manifest.bytes)
    better = advice.way is not None and advice.way.packed and advice.way.has_room
    return replace(proposal, instead=advice.command if better else None)


def check_space(proposal: Proposal) -> None:
    """DiskError unless what is still to come fits the disk; it names the packed pull that would."""
    try:
        download.check_space(proposal.manifest, proposal.manifest.files)
    except DiskError as error:
        better = f"{proposal.instead} takes less; or " if proposal.instead else ""
        raise DiskError(error.message, f"{better}{error.hint}") from None


def _quantised(manifest: DownloadManifest, spec: ModelSpec, tell: Tell | None) -> str | None:
    """The format of the weights, where config.json or their size speaks of one; None for plain numbers.

    Their headers decide; if those cannot be had, config.json's word does.
    """
    if manifest.tensors is not None:
        return quantised_among(true_tensors(manifest.tensors))
    small = sum(file.size for file in manifest.weights) < _LEAST_BYTES * params.count(spec).total
    released = all(RELEASE.holds(file.name) for file in manifest.weights)
    if spec.unsupported or released or (spec.quantization is None and not small):
        return spec.quantization
    tensors: dict[str, StoredTensor] = {}
    with suppress(MoecliError):
        for each in headers(manifest, tell):
            tensors |= each
        scheme = families.quantization_scheme(manifest.config)
        return quantised_among(true_tensors(split_towers(tensors)[0], scheme))
    return spec.quantization


def _manifest(ref: ModelRef, repo: str, tell: Tell | None) -> tuple[DownloadManifest, str | None]:
    """From the Hub; where it is not to be asked or cannot be reached, from a snapshot in the cache that looks whole."""
    here, files = ref.snapshot, list[str]()
    if here is not None and ref.variant is not None and ref.file is not None:
        files = gguf_names.parts_of(ref.file.relative_to(here).as_posix())
    if here is not None and settings.offline():
        return cached_manifest(repo, here, files), "the network is not to be used"
    policy = RetryPolicy(attempts=1) if here else None
    try:
        return read_manifest(repo, ref.revision, policy, tell, ref.variant), None
    except HubBusy as error:
        if here is None:
            raise
        return cached_manifest(repo, here, files), error.message


def _nothing_to_pull(ref: ModelRef) -> ModelNotFound:
    if ref.entry is not None:
        return missing(ref, advice_on(ref))
    if ref.folder is not None:
        return ModelNotFound(f"'{ref.name}' is on this machine already", f"it lies in {ref.folder}")
    return ModelNotFound(f"'{ref.name}' is no model of the Hub", "type an alias or a Hub id as org/name")

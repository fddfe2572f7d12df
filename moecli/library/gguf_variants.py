"""The GGUF files of a repository: how large each is, and how the model in it would run on this machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from moecli.checkpoint.binding import nearest_format
from moecli.checkpoint.gguf_names import Variant
from moecli.errors import ModelNotFound
from moecli.hub import cache as hub_cache
from moecli.hub.manifest import list_variants, read_manifest
from moecli.library.resolve import ModelRef
from moecli.model import families, params
from moecli.planning.estimate import Budget, Estimate, estimate_one
from moecli.planning.memory import default_context
from moecli.store.filesystem import free_space


@dataclass(frozen=True, slots=True)
class Offer:
    """One of them. `estimate` is in the format that it is packed to where nobody names one; `here`: in the cache."""

    model: str  # as it is typed
    variant: Variant
    bytes: int
    bits_per_weight: float
    estimate: Estimate
    here: bool
    free: int  # bytes of the disk that holds the cache

    @property
    def has_room(self) -> bool:
        return self.here or self.bytes <= self.free

    @property
    def runs(self) -> bool:
        """Whether the memory is enough for it, packed."""
        return self.estimate.plan.runs


@dataclass(frozen=True, slots=True)
class Offers:
    """All of a repository at one commit, the largest first. `best`: the largest that can be fetched and run here."""

    repo: str
    commit: str
    parameters: int
    offers: tuple[Offer, ...]

    @property
    def best(self) -> Offer | None:
        return next((each for each in self.offers if each.runs and each.has_room), None)


def offers(ref: ModelRef, budget: Budget, context: int | None = None, batch: int = 1) -> Offers:
    """Ask the Hub: its list of files, and the head of the smallest, which says what model it is.

    ModelNotFound for what is no repository of GGUF files; ConfigError for an architecture that is not read.
    """
    if ref.repo is None:
        raise ModelNotFound(f"'{ref.name}' is no repository of the Hub", "name one as org/name")
    commit, found = list_variants(ref.repo, ref.revision)
    least = min(found, key=found.__getitem__)
    config = read_manifest(ref.repo, commit, variant=least.files[0]).config
    spec = families.find(config).read(config)
    numbers, context = params.count(spec).total, context or default_context(spec)
    labels = Counter(each.label.casefold() for each in found)
    held = {each for each in hub_cache.variants(hub_cache.repository(ref.repo) / "snapshots" / commit) if each.whole}
    at = f"@{ref.revision}" if ref.revision else ""
    free, estimates, rows = free_space(hub_cache.repository(ref.repo)), dict[str, Estimate](), []
    for variant, size in sorted(found.items(), key=lambda item: -item[1]):
        name = variant.label if labels[variant.label.casefold()] == 1 else variant.files[0]
        bits = 8 * size / numbers
        dtype = nearest_format(bits) or "bf16"
        if dtype not in estimates:
            estimates[dtype] = estimate_one(spec, budget, dtype, context, batch)
        model = f"{ref.repo}:{name}{at}"
        rows.append(Offer(model, variant, size, bits, estimates[dtype], variant in held, free))
    return Offers(ref.repo, commit, numbers, tuple(rows))

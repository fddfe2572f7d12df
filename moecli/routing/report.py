"""Everything measured of one trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from moecli.routing.balance import FIGURES, OVERFLOW_FACTORS, Balance, Noise, balance, noise, overflow
from moecli.routing.coactivation import Coactivation, coactivation
from moecli.routing.domains import Domains, Units, called, domain_counts, domain_distances, units
from moecli.routing.permutation import FEWEST_PROMPTS, Chance, chance, relabelled, resampled
from moecli.routing.replay import Replay, Verdict, replay, verdict
from moecli.routing.temporal_locality import (
    LocalityBaseline,
    TemporalLocality,
    locality_baseline,
    locality_chances,
    temporal_locality,
)
from moecli.routing.trace import Integers, LayerTrace, RoutingTrace
from moecli.routing.vocabulary import Vocabulary, vocabulary
from moecli.store.progress import Progress, silent

_SMALL_NOISE = 0.5  # MaxVio of a uniform router, above which a heatmap shows mostly luck


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one layer, measured or as a uniform router shows them, or of several layers together.

    None where a figure is not known. Together: means over the layers that have it, of `dead` the sum.
    """

    entropy: float | None
    max_violation: float | None
    cv2: float | None
    gini: float | None
    dead: float
    repeat_top1: float | None
    repeat_any: float | None
    mean_overlap: float | None
    gate_entropy: float | None = None
    auxiliary_loss: float | None = None
    z_loss: float | None = None
    foreseen: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerReport:
    """One layer's figures, each beside what a uniform router and what chance shows."""

    layer: int
    experts: int
    active: int
    counts: tuple[int, ...]  # assignments of each expert
    by_domain: tuple[tuple[int, ...], ...]  # the same by domain
    balance: Balance
    noise: Noise
    dead_chance: float  # (1 - k/E)^T: that a uniform router leaves a given expert unused
    overflow: tuple[float, ...]  # share dropped, for each of OVERFLOW_FACTORS
    locality: TemporalLocality
    locality_baseline: LocalityBaseline
    gate_entropy: float | None  # mean over tokens of H(gate) / ln E: the router's doubt
    auxiliary_loss: float | None  # E * sum f_e P_e with f_e = c_e / T; a uniform router has k
    z_loss: float | None  # mean logsumexp^2
    foreseen: float | None  # share of choices that the router takes of the state before the layer, too
    coactivation: Coactivation
    vocabulary: Vocabulary
    chances: Mapping[str, Chance] = field(default_factory=dict)  # by the names of Figures; those with a verdict

    @property
    def figures(self) -> Figures:
        """The layer's figures as measured."""
        measured = self.gate_entropy, self.auxiliary_loss, self.z_loss, self.foreseen
        return _figures(self.balance, self.locality, *measured)

    @property
    def uniform(self) -> Figures:
        """What a uniform router shows on average."""
        by_luck = self.active / self.experts
        return _figures(self.noise.mean, self.locality_baseline.uniform, None, self.active, None, by_luck)

    @property
    def limit(self) -> Figures:
        """What only 1 in 20 uniform routers exceeds (entropy: falls below)."""
        return _figures(self.noise.limit, self.locality_baseline.limit)

    @property
    def utilisation(self) -> tuple[float, ...]:
        """Each expert's load over the mean load, p_e * E: 1 is an even share."""
        mean = sum(self.counts) / self.experts
        return tuple(count / mean for count in self.counts)

    @property
    def few_tokens(self) -> bool:
        """Whether there are so few tokens that one expert of a uniform router, too, would look hot or dead."""
        return self.noise.mean.max_violation > _SMALL_NOISE


@dataclass(frozen=True, slots=True, eq=False)
class RoutingReport:
    """One trace: its size, its layers, and what a cache would have done."""

    model: str
    family: str
    dtype: str
    domains: tuple[str, ...]
    domain_tokens: tuple[int, ...]
    prompts: int
    tokens: int
    generated_tokens: int
    layers: tuple[LayerReport, ...]
    domain_distances: Domains | None  # of all layers; with one domain there are none
    replay: Replay | None
    verdict: Verdict | None

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read, not generated."""
        return self.tokens - self.generated_tokens

    @property
    def overall(self) -> Figures:
        """All layers together, as measured."""
        return _together(layer.figures for layer in self.layers)

    @property
    def overall_uniform(self) -> Figures:
        """All layers together, as a uniform router shows them."""
        return _together(layer.uniform for layer in self.layers)

    @property
    def few_tokens(self) -> bool:
        """Whether a layer has so few tokens that an expert of a uniform router, too, would look hot or dead."""
        return any(layer.few_tokens for layer in self.layers)


def _figures(
    load: Balance, repeated: TemporalLocality, gate_entropy: float | None = None, auxiliary_loss: float | None = None,
    z_loss: float | None = None, foreseen: float | None = None,
) -> Figures:  # fmt: skip
    return Figures(
        load.entropy, load.max_violation, load.cv2, load.gini, load.dead, repeated.top1, repeated.any,
        repeated.overlap, gate_entropy, auxiliary_loss, z_loss, foreseen,
    )  # fmt: skip


def _together(layers: Iterable[Figures]) -> Figures:
    every = list(layers)
    known = {
        name: [value for each in every if (value := getattr(each, name)) is not None]
        for name in (field.name for field in fields(Figures))
    }
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return Figures(**{**means, "dead": sum(known["dead"])})


def report(
    trace: RoutingTrace, with_replay: bool = True, adjacent_ranks: bool = False, watch: Progress = silent
) -> RoutingReport:
    """All figures of a trace. `adjacent_ranks` counts as pairs only experts next to each other in rank; `watch` is told
    of layers."""
    result = replay(trace) if with_replay else None
    prompts = units(trace)
    counts = [prompts.counts(layer) for layer in trace.layers]
    distances = None
    if len(trace.domains) > 1:
        distances = domain_distances(counts, prompts.domain, len(trace.domains))
    layers: list[LayerReport] = []
    for layer, each in zip(trace.layers, counts, strict=True):
        watch(len(layers), len(trace.layers))
        layers.append(_layer(layer, trace, prompts, each, adjacent_ranks))
    return RoutingReport(
        trace.model,
        trace.family,
        trace.dtype,
        trace.domains,
        tuple(np.bincount(trace.domain, minlength=len(trace.domains)).tolist()),
        len(np.unique(trace.prompt)),
        trace.tokens,
        int(trace.generated.sum()),
        _called(layers),
        distances,
        result,
        verdict(result) if result else None,
    )


def _called(layers: list[LayerReport]) -> tuple[LayerReport, ...]:
    """The layers with verdicts: each figure is tested in all of them together."""
    for name in {name for layer in layers for name in layer.chances}:
        mine = [place for place, layer in enumerate(layers) if name in layer.chances]
        for place, found in zip(mine, called([layers[place].chances[name] for place in mine]), strict=True):
            layers[place] = replace(layers[place], chances={**layers[place].chances, name: found})
    return tuple(layers)


def _chances(layer: LayerTrace, trace: RoutingTrace, prompts: Units, counts: Integers) -> dict[str, Chance]:
    """What of this layer can be held against chance, with these prompts."""
    found: dict[str, Chance] = {}
    if prompts.count >= FEWEST_PROMPTS and layer.experts > 1:
        even, renumbered = resampled(counts), relabelled(counts)
        for name, figure in FIGURES.items():
            found[name] = chance(figure(renumbered if name == "dead" else even), falls=name == "entropy")
    repeated = locality_chances(layer, trace.follows, prompts.of_token, prompts.count)
    names = {"top1": "repeat_top1", "any": "repeat_any", "overlap": "mean_overlap"}
    return found | {names[name]: each for name, each in repeated.items()}


def _layer(
    layer: LayerTrace, trace: RoutingTrace, prompts: Units, prompt_counts: Integers, adjacent_ranks: bool
) -> LayerReport:
    counts, by_domain = layer.counts(), domain_counts(layer, trace)
    return LayerReport(
        layer=layer.layer,
        experts=layer.experts,
        active=layer.active,
        counts=tuple(counts.tolist()),
        by_domain=tuple(tuple(row) for row in by_domain.tolist()),
        balance=balance(counts),
        noise=noise(layer.experts, layer.active, trace.tokens),
        dead_chance=(1 - layer.active / layer.experts) ** trace.tokens,
        overflow=tuple(float(overflow(counts, factor)) for factor in OVERFLOW_FACTORS),
        locality=temporal_locality(layer, trace.follows),
        locality_baseline=locality_baseline(layer, int(trace.follows.sum())),
        gate_entropy=None if layer.entropy is None else float(layer.entropy.mean()),
        auxiliary_loss=_auxiliary_loss(layer, trace),
        z_loss=layer.log_sum_squared,
        foreseen=layer.foreseen,
        coactivation=coactivation(layer, prompts.of_token, adjacent_ranks=adjacent_ranks),
        vocabulary=vocabulary(layer, trace.ids, prompts.of_token),
        chances=_chances(layer, trace, prompts, prompt_counts),
    )


def _auxiliary_loss(layer: LayerTrace, trace: RoutingTrace) -> float | None:
    if layer.mean_probabilities is None:
        return None
    share = np.bincount(trace.domain, minlength=len(trace.domains)) / trace.tokens
    overall = share @ layer.mean_probabilities  # [E]
    return float(layer.experts * (layer.counts() / trace.tokens * overall).sum())

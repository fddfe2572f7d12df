"""Fills a trace while the model runs: the engine's recorder hands it arrays, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecli.errors import MoecliError
from moecli.routing.trace import MOST_DOMAINS, Choices, Floats, LayerTrace, RoutingTrace, Singles


@dataclass(slots=True)
class _Layer:
    chosen: list[Choices] = field(default_factory=list)
    weights: list[Singles] = field(default_factory=list)
    entropy: list[Singles] = field(default_factory=list)
    probabilities: list[Singles] = field(default_factory=list)
    sums: dict[int, Floats] = field(default_factory=dict)  # domain -> gate probabilities [E], summed over its tokens
    log_sum_squared: float = 0.0
    foreseen: int = 0  # choices that could be foreseen
    foreseen_of: int = 0


class TraceBuilder:
    """Collects what passes by. Rows of a layer must come in the order of `tokens`; layers may come in any order,
    each for a chunk, a prompt or all prompts at a time (`begin` again at each change of prompt).
    """

    def __init__(self, experts: Mapping[int, int], keep_probabilities: bool = False) -> None:
        """`experts`: how many each routed layer has. `keep_probabilities` keeps all [T, E] of them."""
        self._experts = experts
        self._keep = keep_probabilities
        self._layers = {layer: _Layer() for layer in sorted(experts)}
        self._domains: dict[str, int] = {}
        self._prompt = self._domain = 0
        self._columns: list[tuple[Sequence[int], int, int, bool]] = []

    @property
    def layers(self) -> Collection[int]:
        """The numbers of the layers that are routed."""
        return self._experts.keys()

    def begin(self, prompt: int, domain: str = "") -> None:
        """What is recorded from here on belongs to this prompt and domain."""
        self._prompt, self._domain = prompt, self._domains.setdefault(domain, len(self._domains))
        if self._domain >= MOST_DOMAINS:
            raise MoecliError(f"more than {MOST_DOMAINS} domains in the prompts", "name fewer domains")

    def tokens(self, ids: Sequence[int], generated: bool) -> None:
        """These tokens were fed to the model, once for all layers."""
        if not self._domains:
            self.begin(0)
        self._columns.append((ids, self._prompt, self._domain, generated))

    def record(
        self,
        layer: int,
        chosen: NDArray[Any],
        weights: NDArray[Any] | None = None,
        probabilities: NDArray[Any] | None = None,
        log_sums: NDArray[Any] | None = None,
    ) -> None:
        """chosen and weights [T, k]; gate scores of any scale [T, E], made to sum to 1; logsumexp of logits [T]."""
        rows = self._layers[layer]
        rows.chosen.append(np.asarray(chosen, np.uint16))
        if weights is not None:
            rows.weights.append(np.asarray(weights, np.float32))
        if probabilities is not None:
            shares = np.asarray(probabilities, np.float32)
            shares = shares / np.maximum(shares.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
            logs = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
            rows.entropy.append(-(shares * logs).sum(-1) / np.float32(np.log(max(self._experts[layer], 2))))
            total = shares.sum(0, dtype=np.float64)
            rows.sums[self._domain] = rows.sums.get(self._domain, 0.0) + total
            if self._keep:
                rows.probabilities.append(shares)
        if log_sums is not None:
            rows.log_sum_squared += float((np.asarray(log_sums, np.float64) ** 2).sum())

    def foreseen(self, layer: int, right: int, choices: int) -> None:
        """So many of so many choices are what the layer's router would have taken of the state before the layer."""
        self._layers[layer].foreseen += right
        self._layers[layer].foreseen_of += choices

    def build(
        self,
        pieces: Mapping[int, str] | None = None,
        *,
        name: str = "",
        revision: str = "",
        dtype: str = "",
        family: str = "",
    ) -> RoutingTrace:
        """The trace so far; a pass that was interrupted between layers is left out."""
        lengths = [sum(map(len, rows.chosen)) for rows in self._layers.values()]
        total = min([sum(len(ids) for ids, *_ in self._columns), *lengths])
        if not total:
            raise MoecliError("no routing was recorded", "give a prompt of at least one token")
        sizes = [len(ids) for ids, *_ in self._columns]
        ids = np.concatenate([np.asarray(ids, np.uint32) for ids, *_ in self._columns])[:total]
        prompt, domain, generated = (
            np.repeat([column[place] for column in self._columns], sizes)[:total] for place in (1, 2, 3)
        )
        domains = tuple(self._domains)
        tokens = np.bincount(domain, minlength=len(domains))
        return RoutingTrace(
            tuple(self._layer(layer, rows, total, tokens) for layer, rows in self._layers.items()),
            ids, prompt.astype(np.uint32), domain.astype(np.uint16), generated.astype(bool), domains,
            dict(pieces or {}), name, revision, dtype, family,
        )  # fmt: skip

    def _layer(self, layer: int, rows: _Layer, total: int, domain_tokens: NDArray[np.int64]) -> LayerTrace:
        experts = self._experts[layer]
        means = None
        if rows.sums:
            means = np.zeros((len(domain_tokens), experts))
            for domain, added in rows.sums.items():
                means[domain] = added / max(added.sum(), 1e-300)  # each token's probabilities sum to 1
        return LayerTrace(
            layer,
            experts,
            np.concatenate(rows.chosen)[:total],
            _joined(rows.weights, total),
            _joined(rows.entropy, total),
            means,
            rows.log_sum_squared / total if rows.log_sum_squared else None,
            _joined(rows.probabilities, total),
            rows.foreseen / rows.foreseen_of if rows.foreseen_of else None,
        )


def _joined(parts: list[Singles], total: int) -> Singles | None:
    """The parts in one array of `total` rows; None if the recorder saw some passes only."""
    joined = np.concatenate(parts)[:total] if parts else None
    return joined if joined is not None and len(joined) == total else None

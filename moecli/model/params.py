"""How many parameters a model has, in which parts, and how many work on one token: from the spec alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from moecli.model.spec import Layer, Mixture, ModelSpec, Part, alike
from moecli.model.tensors import counted_tensors, expert_count, expert_shapes


@dataclass(frozen=True, slots=True)
class Counts:
    """Exact counts. Every parameter is in one part; the parts sum to `total`. Tied tables are counted once."""

    parts: Mapping[Part, int]
    active: int  # everything that works on one token, both tables whole
    experts: int  # per mixture layer; a dense model counts as one expert that is always on
    active_experts: int
    expert_parameters: int  # of one routed expert
    tied: bool

    @property
    def total(self) -> int:
        """All parameters, the multi-token-prediction layers aside."""
        return sum(self.parts.values())

    @property
    def active_without_input_embedding(self) -> int:
        """A lookup reads one row of the table. A tied table stays: it is the head as well."""
        return self.active - (0 if self.tied else self.parts[Part.EMBEDDING])

    @property
    def active_without_embeddings(self) -> int:
        """What works on one token, without the input table and the output head."""
        return self.active - self._tables

    @property
    def total_without_embeddings(self) -> int:
        """All parameters without the input table and the output head."""
        return self.total - self._tables

    @property
    def _tables(self) -> int:
        return self.parts[Part.EMBEDDING] + self.parts.get(Part.LM_HEAD, 0)


def count(spec: ModelSpec) -> Counts:
    """Count every tensor of `spec`; multi-token-prediction layers and vision towers are not in it."""
    parts = dict.fromkeys(Part, 0)
    idle = 0
    layers = spec.blocks
    for tensor, times in counted_tensors(spec):
        parts[tensor.part] += times * tensor.count
    for layer, times in alike(layers):
        if isinstance(layer.ffn, Mixture):
            matrices = expert_shapes(layer.ffn.latent_width or spec.hidden_size, layer.ffn.expert).values()
            parts[Part.ROUTED_EXPERTS] += times * layer.ffn.router.experts * sum(map(_size, matrices))
            idle += times * _idle(spec, layer, layer.ffn)
    mixture = next((layer.ffn for layer in layers if isinstance(layer.ffn, Mixture)), None)
    return Counts(
        {part: number for part, number in parts.items() if number},
        active=sum(parts.values()) - idle,
        experts=mixture.router.experts if mixture else 1,
        active_experts=mixture.router.top_k if mixture else 1,
        expert_parameters=_expert(spec, mixture) if mixture else _dense_block(spec),
        tied=spec.tied_embeddings,
    )


def _expert(spec: ModelSpec, mixture: Mixture) -> int:
    return expert_count(mixture.latent_width or spec.hidden_size, mixture.expert)


def _idle(spec: ModelSpec, layer: Layer, mixture: Mixture) -> int:
    """Parameters of the experts that one token leaves alone, attention's own experts included (JetMoE)."""
    attention = getattr(layer.attention, "projections", ())
    others = sum(_size(extra.shape) for extra in attention if extra.part is Part.ROUTED_EXPERTS)
    router = mixture.router
    return (router.experts * _expert(spec, mixture) + others) // router.experts * (router.experts - router.top_k)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size


def _dense_block(spec: ModelSpec) -> int:
    ffn = spec.layers[0].ffn
    return 0 if isinstance(ffn, Mixture) else expert_count(spec.hidden_size, ffn)


def kv_numbers_per_token(spec: ModelSpec) -> int:
    """Numbers that one more token adds to the cache, however long the text: what windows keep does not grow."""
    return sum(layer.index_width + _growing(layer) for layer in spec.layers)


def kv_numbers(spec: ModelSpec, tokens: int) -> int:
    """Numbers kept for a text of `tokens`: the growing part, the windows, and the states of recurrent mixers."""
    windows = sum(
        layer.attention.cache_width * min(tokens, layer.attention.window)
        for layer in spec.layers
        if layer.attention.window is not None
    )
    states = sum(layer.recurrent.state for layer in spec.layers if layer.recurrent is not None)
    return tokens * kv_numbers_per_token(spec) + windows + states


def _growing(layer: Layer) -> int:
    return layer.attention.cache_width if layer.attention.window is None else 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which ways of counting give the figures a vendor prints, and that said in a sentence or two."""

    total: tuple[str, ...]
    active: tuple[str, ...]
    text: str
    complete: bool  # every figure that was given is explained


def explain_published(
    counts: Counts, published_total: str | None, published_active: str | None = None
) -> Explanation | None:
    """Hold the printed figures ("46.7B", "36 B", "1.04T") against each way of counting, at their own precision."""
    totals = {"everything": counts.total, "without the embedding tables": counts.total_without_embeddings}
    actives = {
        "everything": counts.active,
        "without the input embedding": counts.active_without_input_embedding,
        "without the embedding tables": counts.active_without_embeddings,
    }
    texts: list[str] = []
    found: list[tuple[str, ...]] = []
    for name, printed, ways in (("total", published_total, totals), ("active", published_active, actives)):
        if printed is None:
            found.append(())
            continue
        matches, remark = _matches(printed, ways)
        texts.append(_sentence(name, printed, ways, matches, remark))
        found.append(matches)
    if not texts:
        return None
    complete = all(found[i] or printed is None for i, printed in enumerate((published_total, published_active)))
    return Explanation(found[0], found[1], " ".join(texts), complete)


_FIGURE = re.compile(r"(\d+(?:,\d{3})*)(?:\.(\d+))?\s*([KMBT]?)", re.IGNORECASE)
_UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}


def read_figure(printed: str) -> tuple[str, int, bool] | None:
    """A count as people print it: its digits, the power of ten of the last one, whether it has decimals.

    46.7B is ("467", 8, True); None for what is no figure.
    """
    match = _FIGURE.fullmatch(printed.strip())
    if match is None:
        return None
    whole, decimals, unit = match.groups()
    return whole.replace(",", "") + (decimals or ""), _UNITS[unit.upper()] - len(decimals or ""), bool(decimals)


def _matches(printed: str, ways: Mapping[str, int]) -> tuple[tuple[str, ...], str]:
    """The ways that give the printed figure, and what it takes beyond rounding at its own precision."""
    figure = read_figure(printed)
    if figure is None:
        return (), ""
    digits, power, decimals = figure
    step = Decimal(10) ** power
    attempts = [(step, digits, ROUND_HALF_UP, ""), (step, digits, ROUND_DOWN, ", with digits cut off, not rounded")]
    short = digits.rstrip("0")
    if not decimals and short != digits and int(short) > 3:  # "480B", "70B", but never "10B": that would fit anything
        coarse = step * 10 ** (len(digits) - len(short))
        attempts.append((coarse, short, ROUND_HALF_UP, ", if its zeros are not meant as digits"))
    for unit_step, wanted, rounding, remark in attempts:
        fitting = tuple(name for name, number in ways.items() if _digits(number, unit_step, rounding) == int(wanted))
        if fitting:
            return fitting, remark
    return (), ""


def _digits(number: int, step: Decimal, rounding: str) -> int:
    return int((number / step).quantize(Decimal(1), rounding))


def _sentence(name: str, printed: str, ways: Mapping[str, int], matches: tuple[str, ...], remark: str) -> str:
    if not matches:
        near = ", ".join(f"{number / 1e9:.2f}B {way}" for way, number in ways.items())
        return f"The published {name} of {printed} is not reproduced by any way of counting ({near})."
    if len(matches) == len(ways):
        counted = "whether or not the embedding tables are counted"
    elif matches == ("everything",):
        counted = "if everything is counted, the embedding tables included"
    else:
        counted = " or ".join(matches).replace("everything", "with everything")
    return f"The published {name} of {printed} is reached {counted}{remark}."

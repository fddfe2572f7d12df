"""How often the routing figures call chance "beyond chance", with real prompts: python -m benchmarks.nulls [SEEDS]

The built-in model reads 40 passages of the held-out texts of training/. For each verdict of `inspect --routing` what it
is about is then destroyed at random, seed by seed, and all else kept: 1 in 40 may be called. Beside it the same with
tokens as the unit, as the figures were until 0.1. A Markdown table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import moecli
from moecli.engine.load import open_model
from moecli.engine.recorder import Recorder, new_builders
from moecli.planning.placement import fit
from moecli.routing import prompts
from moecli.routing.balance import FIGURES, noise
from moecli.routing.coactivation import coactivation
from moecli.routing.domains import divergences, domain_distances, load_distances, units
from moecli.routing.permutation import LEVEL, chance, discoveries, resampled
from moecli.routing.replay import replay, verdict
from moecli.routing.report import report
from moecli.routing.temporal_locality import locality_baseline, locality_chances, temporal_locality
from moecli.routing.trace import LayerTrace, RoutingTrace
from moecli.text.tokenizer import Tokenizer

TINY = Path(moecli.__file__).parent / "tiny"
HELD_OUT = Path(__file__).parents[1] / "training" / "heldout"
PROMPTS = 40
_BY_TOKENS = 20  # seeds: what is called every time needs no more
Random = np.random.Generator


def passages(files: Iterable[str], count: int = PROMPTS, length: int = 600) -> list[prompts.Prompt]:
    """`count` passages of `length` characters, as many of each file."""
    names = list(files)
    found = []
    for place, name in enumerate(names):
        text = (HELD_OUT / f"{name}.txt").read_text(encoding="utf-8")
        wanted = count // len(names) + (place < count % len(names))
        found += [prompts.Prompt(text[length * n :][:length], name) for n in range(wanted)]
    return found


def record(texts: Sequence[prompts.Prompt], dtype: str = "fp32") -> RoutingTrace:
    """What the router of the built-in model does with these texts."""
    torch.set_num_threads(1)  # on a busy machine two wait for each other
    model, tokenizer = open_model(TINY), Tokenizer.load(TINY)
    encoded = [tokenizer.encode(text.text) for text in texts]
    most = max(map(len, encoded))
    decoder = model.decoder(fit(model.spec, dtype, most, 2**60))
    builder = new_builders("tiny", model.spec)[""]
    recorder = Recorder(model.spec, builder)
    for number, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
        recorder.begin(number, text.domain)
        decoder.forward(torch.tensor(ids), decoder.new_cache(most, most), recorder)
    recorder.flush()
    return builder.build(name="tiny", dtype=dtype, family=model.spec.family)


Called = tuple[bool, bool]  # with prompts as the unit, with tokens if that was asked for
Trial = Callable[[RoutingTrace, Random, bool], Called]


@dataclass(frozen=True)
class Verdict:
    """What the program would say, and how its truth is destroyed: one trial of a seed."""

    name: str
    null: str
    trial: Trial


def domains(*sizes: int, pairs: bool = False) -> Trial:
    """Labels dealt to the prompts at random, so many of each; none: by coin. The verdict on layers, or on pairs."""

    def trial(trace: RoutingTrace, random: Random, tokens: bool) -> Called:
        known = units(trace)
        labels = random.integers(0, 2, known.count)
        if sizes:
            labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
        counts = [known.counts(layer) for layer in trace.layers]
        found = domain_distances(counts, labels, int(labels.max()) + 1)
        by_layer = [layer.chance is not None and layer.chance.beyond for layer in found.layers]
        grouped = [np.stack([each[labels == name].sum(0) for name in range(labels.max() + 1)]) for each in counts]
        by_tokens = tokens and any(_beyond_tokens(each, random) for each in grouped)
        return bool(found.beyond.any()) if pairs else any(by_layer), by_tokens

    return trial


def _beyond_tokens(counts: np.ndarray, random: Random) -> bool:
    """Whether the loads [groups, E] differ, were each token dealt by itself."""
    pooled = counts.sum(0) / counts.sum()
    upper = np.triu_indices(len(counts), 1)
    dealt = [divergences(np.stack([random.multinomial(size, pooled) for size in counts.sum(1)])) for _ in range(40)]
    return bool(divergences(counts)[upper].mean() > np.percentile([each[upper].mean() for each in dealt], 95))


def balance(name: str) -> Trial:
    """The experts of each prompt renumbered in a circle: each prompt as uneven as it is, all together even."""

    def trial(trace: RoutingTrace, random: Random, tokens: bool) -> Called:
        known = units(trace)
        chances, by_tokens = [], False
        for layer in trace.layers:
            turns = random.integers(0, layer.experts, known.count)
            counts = np.stack([np.roll(row, turn) for row, turn in zip(known.counts(layer), turns, strict=True)])
            chances.append(chance(FIGURES[name](resampled(counts)), falls=name == "entropy").p_value)
            measured = float(FIGURES[name](counts.sum(0)))
            by_tokens |= noise(layer.experts, layer.active, trace.tokens).shows(name, measured)
        return _any(chances), by_tokens

    return trial


def _any(p_values: Sequence[float]) -> bool:
    return bool(discoveries(p_values).any())


def locality(trace: RoutingTrace, random: Random, tokens: bool) -> Called:
    """The tokens of each prompt in random order."""
    known = units(trace)
    order = np.lexsort((random.random(trace.tokens), known.of_token))
    found: dict[str, list[float]] = {}
    by_tokens = False
    for layer in trace.layers:
        shuffled = LayerTrace(layer.layer, layer.experts, layer.chosen[order])
        for name, each in locality_chances(shuffled, trace.follows, known.of_token, known.count).items():
            found.setdefault(name, []).append(each.p_value)
        limit = locality_baseline(shuffled, int(trace.follows.sum())).limit.top1
        by_tokens |= (temporal_locality(shuffled, trace.follows).top1 or 0) > (limit or 1)
    return any(map(_any, found.values())), by_tokens


def pairs(trace: RoutingTrace, random: Random, tokens: bool) -> Called:
    """Tokens of a prompt exchange experts, so that loads stay and pairs are random."""
    known = units(trace)
    called = by_tokens = False
    for layer in trace.layers:
        mixed = LayerTrace(layer.layer, layer.experts, _repaired(layer.chosen, known.of_token, random))
        found = coactivation(mixed, known.of_token, top=1)
        chance = found.top[0].p_value
        called |= bool(found.top[0].beyond_chance) and chance is not None and chance * len(trace.layers) <= LEVEL
        by_tokens |= found.top[0].share > found.limit
    return called, by_tokens


def _repaired(chosen: np.ndarray, prompt: np.ndarray, random: Random) -> np.ndarray:
    """Tokens next to each other in a random order of each prompt exchange one expert, often."""
    mixed: np.ndarray = chosen.copy()
    for _ in range(12):
        order = np.argsort(prompt + random.random(len(prompt)))
        one, two = order[:-1:2], order[1::2]
        mine, yours = random.integers(0, chosen.shape[1], (2, len(one)))
        given, taken = mixed[one, mine], mixed[two, yours]
        free = ~((mixed[one] == taken[:, None]).any(1) | (mixed[two] == given[:, None]).any(1))
        free &= prompt[one] == prompt[two]
        mixed[one[free], mine[free]], mixed[two[free], yours[free]] = taken[free], given[free]
    return mixed


def loads(other: RoutingTrace) -> Trial:
    """Two formats of the model, exchanged in half of the prompts."""

    def trial(trace: RoutingTrace, random: Random, tokens: bool) -> Called:
        known = units(trace)
        swap = random.random(known.count) < 0.5
        ours, theirs, by_tokens = [], [], False
        for one, two in zip(trace.layers, other.layers, strict=True):
            a, b = known.counts(one), known.counts(two)
            ours.append(np.where(swap[:, None], a, b))
            theirs.append(np.where(swap[:, None], b, a))
            by_tokens |= tokens and _beyond_tokens(np.stack([ours[-1].sum(0), theirs[-1].sum(0)]), random)
        found = load_distances(ours, theirs, paired=True)
        return any(each.chance is not None and each.chance.beyond for each in found), by_tokens

    return trial


def caching(trace: RoutingTrace, random: Random, tokens: bool) -> Called:
    """Every token takes experts at random."""
    layers = tuple(
        replace(layer, chosen=random.random((trace.tokens, layer.experts)).argsort(1)[:, : layer.active].astype("u2"))
        for layer in trace.layers[:1]
    )
    found = verdict(replay(replace(trace, layers=layers), most_accesses=4_000, policies=("adaptive", "belady")))
    return bool(found.pays), bool(found.pays)


def verdicts(other: RoutingTrace) -> list[Verdict]:
    """All of them."""
    return [
        Verdict("domains, 2", "20 and 20 prompts labelled at random", domains(20, 20)),
        Verdict("domains, 2", "labels by coin", domains()),
        Verdict("domains, 5", "8 prompts each, labelled at random", domains(*(8,) * 5)),
        Verdict("pairs of 5 domains", "the same", domains(*(8,) * 5, pairs=True)),
        Verdict("domains, 3", "30, 6 and 4 prompts, labelled at random", domains(30, 6, 4)),
        Verdict("normalised entropy", "each prompt's experts renumbered in a circle", balance("entropy")),
        Verdict("MaxVio", "the same", balance("max_violation")),
        Verdict("Gini", "the same", balance("gini")),
        Verdict("repeats", "each prompt's tokens in random order", locality),
        Verdict("closest pair", "each prompt's tokens exchange experts", pairs),
        Verdict("loads of two formats", "formats exchanged in half of the prompts", loads(other)),
        Verdict("caching pays", "every choice at random", caching),
    ]


def rate(verdict: Verdict, trace: RoutingTrace, seeds: int) -> tuple[float, float]:
    """How often it is called: with prompts as the unit, with tokens (over the first seeds)."""
    called = [verdict.trial(trace, np.random.default_rng(seed), seed < _BY_TOKENS) for seed in range(seeds)]
    prompts, tokens = zip(*called, strict=True)
    return float(np.mean(prompts)), float(np.mean(tokens[:_BY_TOKENS]))


def main(seeds: int = 200) -> None:
    """Print the table."""
    sets = {"English": ["english"], "six texts": sorted(path.stem for path in HELD_OUT.glob("*.txt"))}
    texts = {name: passages(files) for name, files in sets.items()}
    traces = {name: (record(each), record(each, "q4")) for name, each in texts.items()}
    print("| verdict | what was destroyed | " + " | ".join(f"{name} | by tokens" for name in sets) + " |")
    print("|---|---|" + "--:|--:|" * len(sets))
    for row in range(len(verdicts(traces["English"][1]))):
        cells = []
        for trace, other in traces.values():
            verdict = verdicts(other)[row]
            cells += [f"{100 * share:.1f} %" for share in rate(verdict, trace, seeds)]
        print(f"| {verdict.name} | {verdict.null} | {' | '.join(cells)} |", flush=True)
    found = report(record(prompts.bundled()), with_replay=False)
    distances = found.domain_distances
    assert distances is not None
    layers = sum(layer.chance is not None and layer.chance.beyond for layer in distances.layers)
    print(
        f"\nThe bundled set: {layers} of {len(distances.layers)} layers and {int(distances.beyond.sum()) // 2} of "
        f"{len(found.domains) * (len(found.domains) - 1) // 2} pairs of domains are called."
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

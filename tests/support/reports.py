"""Analyses to look at: drawn traces with hot, cold and dead experts, domains, temporal locality and odd tokens."""

from __future__ import annotations

from functools import cache

import numpy as np

from moecli.routing.analysis import Analysis, RunMemory, analyse
from moecli.routing.report import report
from moecli.routing.trace import LayerTrace, RoutingTrace

DOMAINS = "english", "french", "code"
WORDS = {
    "english": " the| of| and| to| in| a| router| that| it| was| expert|,|.|\n| weigh|s| each| token".split("|"),
    "french": " le| la| de| et| les| un| une| ré|seau| mot|,|.|\n| l'|expert| chaque| où| été".split("|"),
    "code": "def| return|(|)|:|\n|\t|    | =| self|.|for| in| range|[|]|0|,| import".split("|"),
}
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "\x1b[31mred",
    "\u202eevil",
    "\"quoted' onfocus=x & <b>|",
    "\x00\x07",
    "漢字",
    "e\u0301",
    "<!--data-->",
)


def trace(
    experts: int = 8,
    active: int = 2,
    layers: int = 6,
    tokens: int = 360,
    domains: tuple[str, ...] = DOMAINS,
    seed: int = 0,
    noise: int = 0,
    family: str = "",
    prompts: int = 1,
) -> RoutingTrace:
    """Loads fall with an expert's rank, which each domain deals anew; the last expert of layer 1 is dead, a token
    often takes its neighbour's experts. The same seed with another `noise` is another format of the same model.
    `prompts`: of each domain."""
    random = np.random.default_rng(seed)
    of_domain = np.repeat(np.arange(len(domains)), -(-tokens // len(domains)))[:tokens]
    texts = [WORDS.get(name, WORDS["english"]) for name in domains]
    vocabulary = [*dict.fromkeys(word for words in WORDS.values() for word in words), *HOSTILE]
    draws = [random.choice(texts[domain], p=_falling(len(texts[domain]))) for domain in of_domain]
    ids = np.array([vocabulary.index(word) for word in draws], np.uint32)
    ids[np.linspace(3, tokens - 3, len(HOSTILE)).astype(int)] = range(len(vocabulary) - len(HOSTILE), len(vocabulary))
    drawn = []
    for layer in range(layers):
        popularity = np.stack([random.permutation(-0.5 * np.log1p(np.arange(experts))) for _ in domains])
        likes = random.normal(0, 0.7 * layer / layers, (len(vocabulary), experts))
        luck = random.gumbel(size=(tokens, experts))
        luck[1:] = np.where(random.random((tokens - 1, 1)) < 0.25, luck[:-1], luck[1:])
        scores = popularity[of_domain] + likes[ids] + luck
        scores += np.random.default_rng((noise, layer)).normal(0, 0.15 if noise else 0, scores.shape)
        if layer == 1:
            scores[:, -1] = -99
        chosen = np.argsort(-scores, axis=1)[:, :active]
        best = np.exp(np.take_along_axis(scores, chosen, 1))
        gates = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        drawn.append(
            LayerTrace(
                layer,
                experts,
                chosen.astype(np.uint16),
                (best / best.sum(1, keepdims=True)).astype(np.float32),
                (-(gates * np.log(gates + 1e-30)).sum(1) / np.log(experts)).astype(np.float32),
            )
        )
    return RoutingTrace(
        tuple(drawn),
        ids,
        (np.arange(tokens) * len(domains) * prompts // tokens).astype(np.uint32),
        of_domain.astype(np.uint16),
        np.zeros(tokens, bool),
        domains,
        dict(enumerate(vocabulary)),
        "sample",
        dtype="bf16",
        family=family,
    )


def _falling(count: int) -> list[float]:
    shares = 1 / np.arange(1, count + 1)
    return list(shares / shares.sum())


MEMORY = RunMemory(fixed=6 * 2**30, bytes_per_slot=3 * 2**30, full=30 * 2**30, context=4096)


@cache
def sample(experts: int = 8, active: int = 2, layers: int = 6) -> Analysis:
    """With all that can be known of it, or, many layers, with the least."""
    if layers > 10:
        drawn = trace(experts, active, layers, tokens=150)
        return Analysis(drawn, report(drawn, with_replay=False), ())
    return analyse(trace(experts, active, layers), memory=MEMORY)


@cache
def compared(experts: int = 8, active: int = 2, layers: int = 6) -> Analysis:
    """Against the same in another format."""
    return analyse(trace(experts, active, layers), other=trace(experts, active, layers, noise=1), memory=MEMORY)


@cache
def several(experts: int = 8, active: int = 2, layers: int = 6) -> Analysis:
    """With eight prompts of each domain, so that every verdict is given."""
    drawn, other = (trace(experts, active, layers, 1440, noise=noise, prompts=8) for noise in (0, 1))
    return analyse(drawn, other=other, memory=MEMORY)


@cache
def mixtral() -> Analysis:
    """Something of the shape of Mixtral 8x7B."""
    return analyse(trace(8, 2, 32, 150, family="mixtral"), memory=MEMORY)

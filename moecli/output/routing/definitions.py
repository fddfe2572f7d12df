"""What each figure is, in one sentence with its formula: the part of a page that a reader can cite."""

from __future__ import annotations

_DEFINITIONS = (
    ("utilisation", "p_e · E, where p_e is the share of all assignments that expert e of E takes; 1 is an even share"),
    ("norm. entropy", "normalised entropy of the loads, H(p) / ln E; 1 is even"),
    ("MaxVio", "maximal violation, max p_e · E - 1: how far the busiest expert is above an even share [2408.15664]"),
    ("CV²", "squared coefficient of variation of the loads, var(p) / mean(p)², population variance [1701.06538]"),
    ("Gini", "Gini coefficient of the loads; 0 all alike, 1 - 1/E one expert takes all"),
    ("dead experts", "experts that no token took"),
    ("repeat, first", "P(a token's first choice is that of the token before it) in the same prompt [2401.04088]"),
    ("repeat, any", "P(a token shares an expert with the token before it) [2401.04088]"),
    ("overlap", "mean share of the k experts that neighbouring tokens have in common"),
    (
        "foreseen",
        "share of the prompts' choices that the layer's router takes of the state before the layer's attention, too: "
        "what could be fetched a layer ahead",
    ),
    ("gate entropy", "normalised entropy of one token's router probabilities, H(g) / ln E, mean over tokens"),
    (
        "auxiliary loss",
        "load-balancing loss, E · sum of f_e P_e with f_e = c_e / T; k for a uniform router [2101.03961]",
    ),
    ("z-loss", "mean square of the log of the router's normaliser, logsumexp of the logits [2202.08906]"),
    ("JSD", "Jensen-Shannon divergence of two loads, H((p + q)/2) - (H(p) + H(q))/2, in bits; 0 same, 1 disjoint"),
    ("drop at c x", "share of assignments dropped if no expert may take more than c times the mean [2006.16668]"),
    ("lift", "share of a token's occurrences that take the expert, over the expert's share of all tokens"),
    ("hit rate", "share of expert uses that find the expert in a slot, the trace replayed through a cache policy"),
    ("uniform", "mean of simulated routers that take k of E experts at random for each token"),
    (
        "chance",
        "mean over random deals of whole prompts; of the loads, the cluster bootstrap around an even share",
    ),
    (
        "beyond chance, *",
        "test whose unit is the prompt, at p <= 1/40 after Benjamini and Hochberg over the layers of a row "
        "or the pairs of a table",
    ),
)


def rows() -> tuple[tuple[str, str], ...]:
    """Each figure's name in the tables, and what it is; numbers in brackets are arXiv papers."""
    return _DEFINITIONS

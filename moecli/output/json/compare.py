"""`compare --json`: both models' likelihood, how far apart they are, and how each layer routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moecli.engine.compare import TextComparison
from moecli.engine.decoder import Decoder
from moecli.engine.windows import Cut
from moecli.output.json import SCHEMA_VERSION
from moecli.output.json.perplexity import estimate, likelihood, windows
from moecli.output.json.shared import planned_bytes
from moecli.planning import machine
from moecli.planning.placement import Plan


def document(
    names: Sequence[str], plans: Sequence[Plan], decoders: Sequence[Decoder], found: TextComparison, cut: Cut | None,
    read_s: float,
) -> dict[str, Any]:  # fmt: skip
    """The first model is what the second is held against."""
    sides = zip(names, plans, decoders, (found.first, found.second), strict=True)
    apart = found.divergence
    return {
        "schema_version": SCHEMA_VERSION,
        "models": [
            {
                "model": name,
                "dtype": plan.memory.dtype,
                "device": str(decoder.device),
                **likelihood(side),
                "planned_bytes": planned_bytes(plan),
                "bytes_read": decoder.experts.statistics.bytes_read,
            }
            for name, plan, decoder, side in sides
        ],
        **estimate("loss_difference", found.difference),
        "kl_divergence": {
            **estimate("mean", apart.mean),
            "median": apart.median,
            "percentile_99": apart.percentile_99,
            "largest": apart.largest,
        },
        **estimate("same_top", found.same_top),
        "routing": None
        if found.routing is None
        else {
            "tokens": found.routing.tokens,
            "equal_sets": found.routing.equal_sets,
            "overlap": found.routing.overlap,
            "layers": [asdict(layer) for layer in found.routing.layers],
        },
        **windows(found.first, cut),
        "read_s": read_s,
        "peak_rss_bytes": machine.peak_rss(),
    }

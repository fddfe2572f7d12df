"""`inspect --routing --json`: the model, where it is named, and what its router did."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from moecli.library.inspection import Report, dense_reference
from moecli.output.json import SCHEMA_VERSION, inspect, routing_report
from moecli.planning import machine
from moecli.routing.analysis import Analysis, Comparison
from moecli.routing.published import (
    LOCALITY_LAYERS,
    LOCALITY_SOURCE,
    SHARES_LAYERS,
    SHARES_SOURCE,
    LocalityRow,
    Paper,
)

_MOST_PAIRS = 2**17  # 32 layers of 64 experts: more would be most of the document


def document(
    analyses: Mapping[str, Analysis], layers: Collection[int] | None = None, report: Report | None = None
) -> dict[str, Any]:
    """`report`: of the model, as `inspect --json` shows it; None where a trace alone is named.

    The object is under "routing", of a model of two stacks under "routing_encoder" and "routing_decoder".
    """
    found = {
        f"routing_{stack}".rstrip("_"): routing(each, layers) | {"peak_rss_bytes": machine.peak_rss()}
        for stack, each in analyses.items()
    }
    if report is not None:
        return inspect.document(report, dense_reference([report])) | found
    trace = next(iter(analyses.values())).trace
    about = {"schema_version": SCHEMA_VERSION, "model": trace.model or None, "family": trace.family or None}
    return about | found


def routing(analysis: Analysis, layers: Collection[int] | None = None) -> dict[str, Any]:
    """The `routing` object: rows of `layers` only, everything else of all layers."""
    pairs = sum(experts**2 for experts in analysis.experts)
    result = routing_report.document(analysis.report, analysis.bytes_per_slot, with_coactivation=pairs <= _MOST_PAIRS)
    for place, row in enumerate(result["layers"]):
        row["overflow"] = {f"{each.factor:g}": each.dropped[place] for each in analysis.capacity}
        row["baseline"]["overflow"] = {f"{each.factor:g}": each.baseline[place] for each in analysis.capacity}
    if layers is not None:
        for rows in (result["layers"], result.get("coactivation", [])):
            rows[:] = [row for row in rows if row["layer"] in layers]
    result["dtype"] = analysis.trace.dtype
    result["note"] = analysis.note
    result["provenance"] = {
        key: int(value) if key.endswith("seed") and value.isdecimal() else value
        for key, value in analysis.provenance.items()
    }
    result["recommended_ram_bytes"] = analysis.recommended_ram
    if analysis.memory is not None:
        result["memory"] = {
            "fixed_bytes": analysis.memory.fixed,
            "bytes_per_slot": analysis.memory.bytes_per_slot,
            "full_bytes": analysis.memory.full,
            "context": analysis.memory.context,
        }
    if analysis.comparison is not None:
        result["against"] = _comparison(analysis.comparison)
    if analysis.paper is not None:
        result["published"] = _paper(analysis.paper)
    return result


def _comparison(comparison: Comparison) -> dict[str, Any]:
    agreed = comparison.agreement
    other = routing_report.document(comparison.report)
    return {
        "name": comparison.name,
        "reason": comparison.reason,
        "tokens": other["tokens"],
        "agreement": None
        if agreed is None
        else {
            "tokens": agreed.tokens,
            "equal_sets": agreed.equal_sets,
            "overlap": agreed.overlap,
            "layers": [
                {
                    "layer": layer.layer,
                    "equal_sets": layer.equal_sets,
                    "equal_first": layer.equal_first,
                    "overlap": layer.overlap,
                    "load_distance": layer.load_distance,
                    "baseline": {"equal_sets": layer.equal_sets_by_chance, "overlap": layer.overlap_by_chance},
                }
                for layer in agreed.layers
            ],
        },
        "load_distance": None
        if comparison.loads is None
        else [{"distance": loads.mean, **routing_report.beside_chance(loads.chance)} for loads in comparison.loads],
        "layers": other["layers"],
        "overall": other["overall"],
    }


def _paper(paper: Paper) -> dict[str, Any]:
    def rows(found: tuple[LocalityRow, ...]) -> dict[str, Any]:
        return {row.domain: {"first": row.first, "either": row.either} for row in found}

    return {
        "temporal_locality": {
            "source": LOCALITY_SOURCE,
            "layers": LOCALITY_LAYERS,
            "published": rows(paper.published_locality),
            "measured": rows(paper.locality),
            "random": {"first": paper.random[0], "either": paper.random[1]},
        },
        "domain_shares": {
            "source": SHARES_SOURCE,
            "layers": SHARES_LAYERS,
            "published": {row.domain: row.shares for row in paper.published_shares},
            "measured": {row.domain: row.shares for row in paper.shares},
        },
    }

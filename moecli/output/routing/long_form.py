"""The figures as CSV in long form: one value a line, with what it is of and what chance shows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from moecli.output.routing import against, figures
from moecli.routing.analysis import Analysis
from moecli.routing.report import RoutingReport
from moecli.text.incoming import without_halves

HEADER = (
    "figure", "layer", "expert", "domain", "slots", "value", "uniform", "chance", "limit", "p_value", "beyond_chance",
    "text",
)  # fmt: skip
_Row = dict[str, Any]


def document(analysis: Analysis, report: RoutingReport) -> str:
    """Empty where a column does not apply. `chance` is the mean of random deals of the prompts, `limit` what 1 in 40 of
    them exceed. The last rows, `provenance.*`, have a text and no value."""
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADER, lineterminator="\n")
    writer.writeheader()
    for row in _rows(analysis, report):
        writer.writerow({name: safe(value) for name, value in row.items() if value is not None})
    return out.getvalue()


def _rows(analysis: Analysis, report: RoutingReport) -> Iterator[_Row]:
    for layer in report.layers:
        for expert, (count, value) in enumerate(zip(layer.counts, layer.utilisation, strict=True)):
            yield {"figure": "assignments", "layer": layer.layer, "expert": expert, "value": count}
            yield {"figure": "utilisation", "layer": layer.layer, "expert": expert, "value": value, "uniform": 1}
            for domain, counts in zip(report.domains, layer.by_domain, strict=True):
                if len(report.domains) > 1:
                    yield {
                        "figure": "assignments", "layer": layer.layer, "expert": expert, "domain": domain,
                        "value": counts[expert],
                    }  # fmt: skip
    layers = tuple(layer.layer for layer in report.layers)
    everything = [*figures.layered(report), *figures.distances(report), *figures.overflows(analysis, layers)]
    if analysis.comparison is not None:
        everything += against.agreements(analysis.comparison, layers)
    for row in everything:
        for place, number in enumerate(row.layers):
            yield {
                "figure": row.title or row.name, "layer": number, "value": row.values[place],
                "uniform": row.uniform and row.uniform[place], "chance": row.chance and row.chance[place],
                "limit": row.floor and row.floor[place], "p_value": row.p_values and row.p_values[place],
                "beyond_chance": row.called and int(row.called[place]),
            }  # fmt: skip
    yield from _domains(report)
    if (replay := analysis.report.replay) is not None:
        for curve in replay.curves:
            for slots, rate in zip(replay.slots, curve.hit_rates, strict=True):
                chance = slots / replay.experts
                yield {"figure": f"hit rate, {curve.policy}", "slots": slots, "value": rate, "uniform": chance}
    for key, text in analysis.provenance.items():
        yield {"figure": f"provenance.{key}", "text": text}


def _domains(report: RoutingReport) -> Iterator[_Row]:
    """Each pair of domains, over all layers together."""
    if (found := report.domain_distances) is None:
        return
    for i, j in combinations(range(len(report.domains)), 2):
        row = {
            "figure": "Jensen-Shannon divergence, bit, of two domains",
            "domain": f"{report.domains[i]} / {report.domains[j]}",
            "value": found.matrix[i, j],
        }  # fmt: skip
        if not math.isnan(found.noise[i, j]):
            row |= {
                "chance": found.noise[i, j], "limit": found.limit[i, j], "p_value": found.p_values[i, j],
                "beyond_chance": int(found.beyond[i, j]),
            }  # fmt: skip
        yield row


def safe(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is marked as text; halves of characters are replaced."""
    if isinstance(value, str):
        value = without_halves(value)
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value

"""The figures as CSV in long form: one value a line, with what it is of and what chance shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from moecli.output.routing import against, figures
from moecli.routing.analysis import Analysis
from moecli.routing.report import RoutingReport

HEADER = "figure", "layer", "expert", "domain", "slots", "value", "uniform", "limit"
_Row = dict[str, Any]


def document(analysis: Analysis, report: RoutingReport) -> str:
    """Empty where a column does not apply. `limit` is what 1 in 20 uniform routers exceed."""
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADER, lineterminator="\n")
    writer.writeheader()
    for row in _rows(analysis, report):
        writer.writerow({name: _safe(value) for name, value in row.items() if value is not None})
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
                "figure": row.name, "layer": number, "value": row.values[place],
                "uniform": row.uniform and row.uniform[place], "limit": row.floor and row.floor[place],
            }  # fmt: skip
    if (replay := analysis.report.replay) is not None:
        for curve in replay.curves:
            for slots, rate in zip(replay.slots, curve.hit_rates, strict=True):
                chance = slots / replay.experts
                yield {"figure": f"hit rate, {curve.policy}", "slots": slots, "value": rate, "uniform": chance}


def _safe(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value

"""The heatmap's numbers as a matrix in CSV: a line for each layer, a column for each expert."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moecli.output.routing.heat import Heat
from moecli.output.routing.long_form import safe

VALUE = "utilisation: share of all assignments, times the number of experts; 1 is an even share"


def document(heats: Sequence[Heat], domains: Sequence[str] = ()) -> str:
    """`layer` and the numbers of the experts, then the utilisations; with `domains`, one for each heatmap, a column
    `domain` first. Empty where a layer has fewer experts than another."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    experts = max(heat.experts for heat in heats)
    writer.writerow([*(["domain"] if domains else []), "layer", *range(experts)])
    for place, heat in enumerate(heats):
        first = [safe(domains[place])] if domains else []
        for row in heat.rows:
            writer.writerow([*first, row.layer, *row.values, *[""] * (experts - len(row.values))])
    return out.getvalue()

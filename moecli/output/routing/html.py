"""One page of HTML that asks for nothing else: heatmap and tables as they are, a slider and tokens that answer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from moecli.output.routing import cache, curve, figures, sides, svg
from moecli.output.routing.drawing import Drawing
from moecli.output.routing.heat import Heat, View, domain_name, panels
from moecli.output.routing.screen import size
from moecli.output.routing.sections import Section
from moecli.output.routing.svg import text
from moecli.output.routing.text import Legend, excerpts, legend_of
from moecli.output.routing.words import name, plain
from moecli.routing.analysis import Analysis
from moecli.routing.report import LayerReport, RoutingReport
from moecli.routing.trace import LayerTrace

_CHOICES = 150_000  # of experts by tokens, on the page
_TOKENS = 800
_MANY = 9  # columns whose headings and bracketed values take two lines, so that a table fits a page
_PLACE = re.compile("<!--([a-z]+)-->")


def document(
    analysis: Analysis,
    report: RoutingReport,
    heats: Sequence[Heat],
    drawn: Drawing,
    found: Sequence[Section],
    view: View,
) -> str:
    """The page. Whatever comes from a model or a prompt is escaped, and a policy lets only our own script run."""
    page = resources.files("moecli") / "output" / "page"
    script = (page / "page.js").read_text(encoding="utf-8")
    style = (page / "page.css").read_text(encoding="utf-8") + svg.style(view.colormap, dark=True)
    places = _places(analysis, report)
    start = panels(report.layers)[len(panels(report.layers)) // 2]
    title = view.title or f"Routing of {name(analysis.name)}"
    key = _legend_of(analysis, start, places)
    return _filled(
        (page / "page.html").read_text(encoding="utf-8"),
        {
            "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'",
            "title": text(title),
            "subtitle": text(size(report)),
            "notes": "".join(f'<p class="note">{text(note)}</p>' for note in sides.notes(analysis)),
            "style": style,
            "heatmap": svg.element(drawn, title),
            "last": str(len(report.layers) - 1),
            "start": str(report.layers.index(start)),
            "layer": str(start.layer),
            "legend": _legend(key, start.experts),
            "text": _text(analysis, start, places, key),
            "cache": _cache(analysis),
            "sections": "".join(_section(section) for section in found if section.title != "Cache"),
            "data": _json(_data(analysis, report, heats, drawn, places)),
            "script": script,
        },
    )


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """In one pass, so that nothing that was filled in is taken for a place."""
    return _PLACE.sub(lambda place: parts[place[1]], template)


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON in which no character means anything to HTML."""
    escaped = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return escaped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _places(analysis: Analysis, report: RoutingReport) -> list[tuple[str, range]]:
    """Domain and tokens: the beginning of the first prompt of each, as much as a page bears."""
    parts = excerpts(analysis)
    each = max(_CHOICES // (sum(layer.active for layer in report.layers) * len(parts)), 20)
    return [(name, range(start, min(end, start + min(each, _TOKENS)))) for name, start, end in parts]


def _data(
    analysis: Analysis,
    report: RoutingReport,
    heats: Sequence[Heat],
    drawn: Drawing,
    places: Sequence[tuple[str, range]],
) -> dict[str, Any]:
    tokens = [place for _, part in places for place in part]
    traced = {layer.layer: layer for layer in analysis.trace.layers}
    rows = figures.layered(report)
    return {
        "layers": [
            _layer(
                layer,
                traced[layer.layer],
                tokens,
                _legend_of(analysis, layer, places),
                "; ".join(f"{row.name} {row.beside(place)}" for row in rows),
            )
            for place, layer in enumerate(report.layers)
        ],
        "blocks": [
            {"x": block.x, "y": block.y, "width": block.width, "height": block.height} for block in drawn.blocks
        ],
        "heats": [
            {
                "title": heat.title,
                "rows": [[round(value, 3) for value in row.values] for row in heat.rows],
                "experts": [row.experts for row in heat.rows] if heat.sorted else None,
            }
            for heat in heats
        ],
    }


def _legend_of(analysis: Analysis, layer: LayerReport, places: Sequence[tuple[str, range]]) -> Legend:
    chosen = next(one.chosen for one in analysis.trace.layers if one.layer == layer.layer)
    return legend_of(layer, [int(chosen[token, 0]) for _, part in places for token in part])


def _layer(layer: LayerReport, traced: LayerTrace, tokens: Sequence[int], key: Legend, said: str) -> dict[str, Any]:
    weights = None if traced.weights is None else (traced.weights[tokens] * 1000).round().astype(int).ravel().tolist()
    return {
        "layer": layer.layer,
        "experts": layer.experts,
        "active": layer.active,
        "coloured": key.coloured,
        "letters": key.letters,
        "chosen": traced.chosen[tokens].ravel().tolist(),
        "weights": weights,
        "figures": said,
    }


def _text(analysis: Analysis, layer: LayerReport, places: Sequence[tuple[str, range]], key: Legend) -> str:
    """Every token with the colour and mark of its first choice in one layer."""
    chosen = next(one.chosen for one in analysis.trace.layers if one.layer == layer.layer)
    parts = []
    for domain, part in places:
        spans = "".join(_token(analysis.text_of(token), int(chosen[token, 0]), key) for token in part)
        parts.append(f"<dt>{text(domain_name(domain))}</dt><dd>{spans}</dd>")
    return f'<dl class="text">{"".join(parts)}</dl>'


def _token(piece: str, expert: int, key: Legend) -> str:
    colour = key.colour(expert)
    shown = text(plain(piece))
    end = "<br>" if piece.endswith("\n") else "<wbr>"
    kind = "k" if colour is None else f"k{colour}"
    return f'<span class="t {kind}" data-text="{shown}">{shown}<i>{key.mark(expert, "·")}</i></span>{end}'


def _legend(key: Legend, experts: int) -> str:
    chips = [
        f'<span class="k{place}">{f"{key.mark(expert, str())} {expert}" if key.letters else expert}</span>'
        for place, expert in enumerate(key.coloured)
    ]
    if experts > len(key.coloured):
        chips.append('<span class="k">others</span>')
    return "".join(chips)


def _cache(analysis: Analysis) -> str:
    report = analysis.report
    if report.replay is None or report.verdict is None:
        return ""
    said = "".join(f"<p>{text(line)}</p>" for line in cache.sentences(analysis))
    return f"<section><h2>Does caching pay here?</h2>{said}{curve.element(report.replay, report.verdict)}</section>"


def _section(section: Section) -> str:
    table = ""
    if section.rows:
        head = "".join(f'<th scope="col">{text(name)}</th>' for name in section.header)
        body = "".join(_row(row) for row in section.rows)
        kind = ' class="texts"' if section.texts else ' class="many"' if len(section.header) > _MANY else ""
        scrolls = f'tabindex="0" role="region" aria-label="{text(section.title)}, scrolls sideways"'
        rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        table = f'<div class="wide" {scrolls}><table{kind}>{rows}</table></div>'
    said = "".join(f'<p class="said">{text(sentence)}</p>' for sentence in section.sentences)
    return f"<section><h2>{text(section.title)}</h2>{table}{said}</section>"


def _row(cells: Sequence[str]) -> str:
    rest = "".join(f"<td>{text(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{text(cells[0])}</th>{rest}</tr>'

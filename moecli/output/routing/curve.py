"""Hit rate against the share of experts that are kept, as SVG: a line for each policy, told apart by dashes too."""

from __future__ import annotations

from moecli.output.routing.shades import OKABE_ITO, hexadecimal
from moecli.output.routing.svg import text
from moecli.routing.replay import Replay, Verdict

_LEFT, _TOP, _WIDTH, _HEIGHT = 44, 12, 420, 240
_DASHES = "", "8 3", "3 3", "10 3 2 3", "1 3", "6 2 1 2 1 2"
_COLOURS = tuple(hexadecimal(OKABE_ITO[index]) for index in (5, 4, 2, 1, 6, 0))


def element(replay: Replay, verdict: Verdict) -> str:
    """The <svg> of all policies; its classes `axis` and `line` are styled by the page."""
    shares = [slots / replay.experts for slots in replay.slots]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" class="curve" role="img" viewBox="0 0 640 300" width="640" '
        'height="300"><title>Hit rate of each policy against the share of experts kept in each layer</title>'
    ]
    for step in range(5):
        x, y = _place(step / 4, step / 4)
        parts.append(f'<path class="axis" d="M{_LEFT} {y}h{_WIDTH}M{x} {_TOP}v{_HEIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{25 * step}%</text>')
        parts.append(f'<text x="{x}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{25 * step}%</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{_TOP + _HEIGHT + 34}" text-anchor="end">experts kept</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP + 12}">hit rate</text>')
    x, _ = _place(verdict.recommended_slots / replay.experts, 0)
    parts.append(f'<path class="mark" d="M{x} {_TOP}v{_HEIGHT}"/>')
    lines = [(curve.policy, list(zip(shares, curve.hit_rates, strict=True))) for curve in replay.curves]
    for index, (name, points) in enumerate(lines):
        style = f'stroke="{_COLOURS[index % 6]}" stroke-dasharray="{_DASHES[index % 6]}"'
        path = "L".join("{} {}".format(*_place(*point)) for point in points)
        y = _TOP + 12 + 20 * index
        parts.append(f'<path class="line" {style} d="M{path}"/><path class="line" {style} d="M490 {y}h36"/>')
        parts.append(f'<text x="534" y="{y + 4}">{text(name)}</text>')
    y = _TOP + 12 + 20 * len(lines)
    x0, y0 = _place(0, 0)
    x1, y1 = _place(1, 1)
    parts.append(f'<path class="chance" d="M{x0} {y0}L{x1} {y1}M490 {y}h36"/><text x="534" y="{y + 4}">chance</text>')
    parts.append(f'<path class="mark" d="M508 {y + 12}v16"/><text x="534" y="{y + 24}">recommended</text></svg>')
    return "".join(parts)


def _place(kept: float, hits: float) -> tuple[float, float]:
    return round(_LEFT + kept * _WIDTH, 1), round(_TOP + (1 - hits) * _HEIGHT, 1)

"""CSV, Markdown, SVG and PNG of `inspect --routing`, read back."""

from __future__ import annotations

import csv
import io
import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moecli.errors import MoecliError, UsageError
from moecli.output.json.routing_report import document
from moecli.output.routing import FORMATS, View, render, write_file
from moecli.output.routing.drawing import drawing
from moecli.output.routing.heat import heats
from moecli.output.routing.shades import light, position
from moecli.routing.analysis import analyse
from moecli.routing.trace_file import load, save
from tests.support import reports as samples
from tests.support.screens import WHOLE

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"


def rows_of(view: View = WHOLE) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(samples.sample(), "csv", view).decode())))


def test_csv_holds_the_report() -> None:
    report, rows = samples.sample().report, rows_of()
    found = {
        (int(row["layer"]), int(row["expert"]), row["figure"], row["domain"]): float(row["value"])
        for row in rows
        if row["expert"]
    }
    for layer in report.layers:
        for expert in range(8):
            assert found[layer.layer, expert, "assignments", ""] == layer.counts[expert]
            assert found[layer.layer, expert, "utilisation", ""] == layer.utilisation[expert]
            parts = [found[layer.layer, expert, "assignments", domain] for domain in report.domains]
            assert sum(parts) == layer.counts[expert]
    entropies = [row for row in rows if row["figure"] == "normalised entropy"]
    for row, layer in zip(entropies, document(report)["layers"], strict=True):
        assert float(row["value"]) == layer["entropy"]
        assert float(row["uniform"]) == layer["baseline"]["entropy"]
        assert row["p_value"] == "", "three prompts"
    assert report.replay is not None
    lru = [float(row["value"]) for row in rows if row["figure"] == "hit rate, lru"]
    assert tuple(lru) == report.replay.curve("lru")


def test_csv_of_chosen_layers() -> None:
    assert {row["layer"] for row in rows_of(View(layers=(1, 4)))} == {"1", "4", ""}


def test_csv_starts_no_formula() -> None:
    hostile = analyse(samples.trace(domains=("=1+1", "english")))
    assert {row["domain"] for row in csv.DictReader(io.StringIO(render(hostile, "csv", View()).decode()))} == {
        "", "'=1+1", "english", "'=1+1 / english",
    }  # fmt: skip


def test_markdown_has_whole_tables_and_no_markup_from_tokens() -> None:
    hostile = analyse(samples.trace(domains=("english", "<b>|*x*")))
    text = render(hostile, "md", View()).decode()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    outside = re.sub(r"```text.*?```", "", text, flags=re.DOTALL)
    assert "\\<b\\>" in outside and not re.search(r"(?<!\\)<(?!\d)", outside)


@pytest.mark.parametrize("by_domain", [False, True])
@pytest.mark.parametrize("experts", [8, 64, 256])
def test_svg_has_a_mark_for_each_expert_and_a_dot_for_the_dead(experts: int, by_domain: bool) -> None:
    analysis = samples.sample(experts, 2 if experts == 8 else 8, 6)
    root = ElementTree.fromstring(render(analysis, "svg", View(by_domain=by_domain)))
    paths = {path.get("class"): path.get("d", "").count("M") for path in root.iter(f"{SVG}path")}
    shown = heats(analysis.report, View(by_domain=by_domain))
    values = [value for heat in shown for row in heat.rows for value in row.values]
    legend = 13
    assert sum(number for name, number in paths.items() if name and name != "paper") == len(values) + legend + 1
    assert paths["s-1"] == values.count(0) + 1
    assert not re.search(r'(?:href|src|url\()|https?://(?!www\.w3\.org/2000/svg")', ElementTree.tostring(root).decode())
    labels = list(root.iter(f"{SVG}text"))
    assert {str(layer.layer) for layer in analysis.report.layers} <= {label.text for label in labels}


def test_svg_escapes_names() -> None:
    hostile = analyse(samples.trace(domains=('</text><script>"\x00', "english")))
    root = ElementTree.fromstring(render(hostile, "svg", View(by_domain=True)))
    assert any("</text><script>" in (text.text or "") for text in root.iter(f"{SVG}text"))
    assert not list(root.iter(f"{SVG}script"))


def pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of a PNG as this program writes it; every checksum verified."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(png):
        length = struct.unpack(">I", png[place : place + 4])[0]
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        place += length + 12
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    data, stride = zlib.decompress(chunks[b"IDAT"]), 3 * width + 1
    assert len(data) == stride * height and set(data[::stride]) == {0}
    return width, height, [data[line * stride + 1 : (line + 1) * stride] for line in range(height)]


@pytest.mark.parametrize(("experts", "view"), [(8, View()), (64, View(sort=True)), (256, View(by_domain=True))])
def test_png_shows_each_expert_in_its_colour(experts: int, view: View) -> None:
    analysis = samples.sample(experts, 2 if experts == 8 else 8, 6)
    _, _, rows = pixels(render(analysis, "png", view))
    shown = heats(analysis.report, view)
    drawn = drawing(shown, "title", "subtitle")
    for heat, block in zip(shown, drawn.blocks, strict=True):
        for line, row in enumerate(heat.rows):
            for column, value in enumerate(row.values):
                x, y = round(2 * (block.x + column * block.width)), round(2 * (block.y + line * block.height))
                corner = tuple(rows[y + 1][3 * x : 3 * x + 3])
                assert corner == (light(position(value)) if value else (255, 255, 255))


def test_png_is_small_and_has_text() -> None:
    content = render(samples.sample(64, 8, 64), "png", View())
    assert len(content) < 250_000
    _, _, rows = pixels(content)
    assert any(b"\x10\x10\x14" in row for row in rows[:60])


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_written_whole_or_explained(format: str, tmp_path: Path) -> None:
    file = tmp_path / f"routing.{format}"
    write_file(samples.sample(), format, file, View(sort=True))
    assert file.read_bytes() == render(samples.sample(), format, View(sort=True))
    with pytest.raises(MoecliError, match="no-folder"):
        write_file(samples.sample(), format, tmp_path / "no-folder" / "x")
    with pytest.raises(UsageError, match="layer 77"):
        render(samples.sample(), format, View(layers=(77,)))


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UsageError, match="gif"):
        render(samples.sample(), "gif", View())


def test_a_trace_from_a_file_gives_the_same_bytes(tmp_path: Path) -> None:
    drawn = samples.trace(layers=2, tokens=90)
    save(drawn, tmp_path / "trace")
    read = load(tmp_path / "trace")
    for format in ("table", "md", "svg"):
        assert render(analyse(read), format, View()) == render(analyse(drawn), format, View())

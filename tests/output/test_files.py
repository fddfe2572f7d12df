"""CSV, Markdown, SVG, PNG and PDF of `inspect --routing`, read back."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moecli.cli import routing_options
from moecli.errors import MoecliError, UsageError
from moecli.output.json.routing_report import document
from moecli.output.routing import FORMATS, View, render, write_file
from moecli.output.routing.drawing import drawing
from moecli.output.routing.files import BINARY
from moecli.output.routing.heat import heats
from moecli.output.routing.shades import COLORMAPS, light, limit_of, position
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


def test_csv_takes_halves_of_characters() -> None:
    broken = analyse(samples.trace(domains=("a\ud800", "english")))
    for format in FORMATS:
        if format not in BINARY:
            render(broken, format, View(by_domain=True)).decode()


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


def test_a_file_for_print_is_light_and_has_the_title_asked_for() -> None:
    for title, wanted in ((None, "sample in bf16: how evenly"), ("On <load>", "On <load>"), ("", None)):
        root = ElementTree.fromstring(render(samples.sample(), "svg", View(title=title)))
        strong = [label.text for label in root.iter(f"{SVG}text") if label.get("class") == "strong"]
        assert (strong[0] or "").startswith(wanted) if wanted else strong == []
        assert "@media" not in ElementTree.tostring(root).decode()
    page = render(samples.sample(), "html", View(title="On <load>", colormap="cividis")).decode()
    assert "<h1>On &lt;load&gt;</h1>" in page and "prefers-color-scheme" in page and "#fee838" in page


@pytest.mark.parametrize("name", COLORMAPS)
def test_a_colormap_goes_from_dark_to_bright_or_has_its_middle_at_an_even_share(name: str) -> None:
    assert set(routing_options.COLORMAPS) == set(COLORMAPS)
    bright = [sum(light(place / 24, name)) for place in range(25)]
    assert bright == sorted(bright) if name != "diverging" else max(bright) == bright[12]


@pytest.mark.parametrize(("values", "limit"), [([], 1.5), ([1, 0, 0.7], 1.5), ([1.6, 0.9], 2), ([0.34], 3), ([9], 4)])
def test_a_scale_is_fitted_to_what_it_shows(values: list[float], limit: float) -> None:
    assert limit_of(values) == limit
    assert [position(value, limit) for value in (1 / limit, 1, limit, 99, 0)] == pytest.approx([0, 0.5, 1, 1, 0])


@pytest.mark.parametrize(
    ("experts", "view"),
    [(8, View(dpi=144)), (64, View(sort=True, dpi=144, colormap="viridis")), (256, View(by_domain=True, dpi=72))],
)
def test_png_shows_each_expert_in_its_colour(experts: int, view: View) -> None:
    image = pytest.importorskip("PIL.Image")
    analysis = samples.sample(experts, 2 if experts == 8 else 8, 6)
    picture = image.open(io.BytesIO(render(analysis, "png", view))).convert("RGB")
    shown = heats(analysis.report, view)
    drawn = drawing(shown, "title", "subtitle")
    scale = view.dpi / 72
    assert picture.size == (round(drawn.width * scale), round(drawn.height * scale))
    for heat, block in zip(shown, drawn.blocks, strict=True):
        for line, row in enumerate(heat.rows):
            for column, value in enumerate(row.values):
                x, y = block.x + column * block.width + 1, block.y + line * block.height + 1.5
                corner = picture.getpixel((int(x * scale), int(y * scale)))
                assert corner == (light(position(value, drawn.limit), view.colormap) if value else (255, 255, 255))


def test_pictures_have_the_resolution_and_type_asked_for() -> None:
    image = pytest.importorskip("PIL.Image")
    one, other = (image.open(io.BytesIO(render(samples.sample(), "png", View(dpi=dpi)))) for dpi in (300, 60))
    assert one.info["dpi"] == pytest.approx((300, 300), abs=0.1) and one.width == pytest.approx(5 * other.width, abs=5)
    pdf = render(samples.sample(), "pdf", View(title="Loads é"))
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"CreationDate" not in pdf
    assert pdf == render(samples.sample(), "pdf", View(title="Loads é"))
    with pytest.raises(UsageError, match="pixels"):
        render(samples.sample(), "png", View(dpi=100_000))


def test_matrix_has_a_line_for_each_layer(tmp_path: Path) -> None:
    report = samples.sample().report
    whole, parts = (
        list(csv.reader(io.StringIO(render(samples.sample(), "matrix", View(sort=True, by_domain=by)).decode())))
        for by in (False, True)
    )
    assert whole[0] == ["layer", *map(str, range(8))]
    assert [list(map(float, row[1:])) for row in whole[1:]] == [list(layer.utilisation) for layer in report.layers]
    assert [row[0] for row in parts[1:]] == [domain for domain in report.domains for _ in report.layers]
    beside = write_file(samples.sample(), "matrix", tmp_path / "m.csv")[1]
    assert json.loads(beside.read_text())["provenance"] == dict(samples.sample().provenance)


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_written_whole_or_explained(format: str, tmp_path: Path) -> None:
    if format in BINARY:
        pytest.importorskip("matplotlib")
    file = tmp_path / f"routing.{format}"
    assert write_file(samples.sample(), format, file, View(sort=True))[0] == file
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

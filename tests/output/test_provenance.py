"""Every export defines its figures and says where they come from."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moecli.output.json.routing import routing
from moecli.output.routing import View, definitions, figures, render
from moecli.routing import files, prompts
from moecli.routing.analysis import Analysis
from moecli.routing.provenance import of_analysis, recorded
from tests.support import reports as samples

ROOT = Path(__file__).parents[2]
PROMPTS = [prompts.Prompt("Où\nest-il ?", "french"), prompts.Prompt("x = 1")]
COMMAND = "moecli inspect tiny --routing --prompts '<b>|é.jsonl'"


@pytest.fixture(scope="module")
def made() -> Analysis:
    trace = samples.sample().trace
    trace = replace(trace, revision="abc", provenance=recorded(COMMAND, 7, "<b>|é.jsonl", PROMPTS, raw=True))
    return replace(samples.sample(), trace=trace, provenance=of_analysis(COMMAND, trace))


def test_it_names_all_that_is_needed(made: Analysis) -> None:
    assert made.provenance == {
        "command": COMMAND,
        "moecli": made.provenance["moecli"],
        "permutation_seed": "0",
        "model": "sample",
        "revision": "abc",
        "dtype": "bf16",
        "seed": "7",
        "prompts": "<b>|é.jsonl",
        # printf '%s\n' '["french", "Où\nest-il ?"]' '["", "x = 1"]' | sha256sum
        "prompts_sha256": "09285d76a6cf3c299deaa08fcd8a5055d9ece24af5af6102ecc75373dc79156b",
        "chat_template": "no",
    }
    later = of_analysis("moecli inspect --routing --from x", made.trace)
    assert later["trace_command"] == COMMAND and later["command"].endswith("--from x") and later["seed"] == "7"


def test_json(made: Analysis) -> None:
    assert routing(made)["provenance"] == {**made.provenance, "seed": 7, "permutation_seed": 0}


def test_csv_keeps_its_numbers(made: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(render(made, "csv", View()).decode())))
    said = {row["figure"].removeprefix("provenance."): row["text"] for row in rows if row["text"]}
    assert said == dict(made.provenance)
    assert all(row["value"] == "" for row in rows if row["text"])
    assert [float(row["value"]) for row in rows if not row["text"]]


def test_markdown_and_html_define_and_say(made: Analysis) -> None:
    for format in ("md", "html"):
        text = render(made, format, View()).decode()
        assert "abc" in text and made.provenance["prompts_sha256"] in text
        for name, _ in definitions.rows():
            assert name.split(",")[0] in text
        assert "<b>|é" not in text


def test_svg(made: Analysis) -> None:
    root = ElementTree.fromstring(render(made, "svg", View()))
    assert root.findtext("{*}desc") == "\n".join(f"{key}: {value}" for key, value in made.provenance.items())


def test_pictures(made: Analysis) -> None:
    image = pytest.importorskip("PIL.Image")
    assert image.open(io.BytesIO(render(made, "png", View()))).text == dict(made.provenance)
    pdf = render(made, "pdf", View()).decode("latin-1")
    assert "moecli" in pdf and made.provenance["prompts_sha256"] in pdf.replace("\x00", "")


def test_traces_keep_it(made: Analysis, tmp_path: Path) -> None:
    for name in ("a.trace", "a.jsonl"):
        files.write(made.trace, tmp_path / name)
        assert files.read(tmp_path / name).provenance == made.trace.provenance


def test_every_figure_is_defined_here_and_in_the_glossary() -> None:
    defined = " ".join(name for name, _ in definitions.rows())
    report = samples.several().report
    for row in (*figures.layered(report), *figures.distances(report)):
        assert row.name.split(",")[0] in defined.replace("norm. entropy", "norm. entropy norm"), row.name
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for name in (
        "entropy, normalised", "MaxVio", "CV²", "Gini", "Jensen-Shannon divergence, JSD", "hit rate", "auxiliary loss",
        "z-loss", "overlap", "temporal locality", "capacity factor", "lift", "chance", "uniform router", "utilisation",
    ):  # fmt: skip
        assert re.search(rf"^\| {re.escape(name)}", glossary, re.MULTILINE), name

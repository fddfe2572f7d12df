"""Documents as CSV and Markdown: the keys of the JSON, a row a document."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from moecli.cli.app import PROGRAM, app
from moecli.errors import UsageError
from moecli.output import records

DOCUMENTS = [
    {"schema_version": 1, "model": "a|b", "fits": True, "router": {"top_k": 2}, "lacks": ["y", "z"], "parts": [{}]},
    {"schema_version": 1, "model": 'c,"d"', "fits": False, "router": {"top_k": None}, "parts": [], "lacks": []},
]  # fmt: skip


def shown(capsysbinary, form: str, documents=DOCUMENTS) -> str:
    records.write(documents, form, None)
    return capsysbinary.readouterr().out.decode()


def test_csv_has_the_paths_of_the_json_and_reads_back(capsysbinary):
    rows = list(csv.DictReader(io.StringIO(shown(capsysbinary, "csv"))))
    assert rows[0] == {"model": "a|b", "fits": "true", "router.top_k": "2", "lacks": "y z", "parts": ""}
    assert rows[1]["model"] == 'c,"d"' and rows[1]["router.top_k"] == ""


def test_markdown_of_many_columns_lies_on_its_side(capsysbinary):
    assert shown(capsysbinary, "md").splitlines()[0] == "| model | fits | router.top_k | lacks | parts |"
    assert r"| a\|b | true | 2 | y z |  |" in shown(capsysbinary, "md")
    wide = shown(capsysbinary, "md", [{"model": name, **{f"k{i}": i for i in range(9)}} for name in "ab"])
    assert wide.splitlines()[:3] == ["| model | a | b |", "|---|---|---|", "| k0 | 0 | 0 |"]


@pytest.mark.parametrize(
    ("typed", "columns", "rows"),
    [
        ("inspect tiny mixtral", {"model", "router.top_k", "parameters.total"}, 2),
        ("memory mixtral --ram 16GiB", {"model", "dtype", "fits", "speed.low"}, 8),
        ("memory mixtral olmoe --dtype q4", {"model", "dtype", "total_bytes"}, 2),
        ("list", {"name", "bytes", "source"}, 1),
    ],
)
def test_commands_write_csv_and_json_files_alike(typed, columns, rows, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MOECLI_HOME", str(tmp_path / "moecli"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("out.csv", "out.json"):
        with pytest.raises(SystemExit) as end:
            app(args=[*typed.split(), "-o", str(tmp_path / name)], prog_name=PROGRAM)
        assert not end.value.code
    found = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(found) == rows and columns <= set(found[0])
    document = json.loads((tmp_path / "out.json").read_text())
    first = document[0] if isinstance(document, list) else document
    assert first["schema_version"] == 1 and found[0]["name" if typed == "list" else "model"] in (
        first.get("model"), first.get("name"),
    )  # fmt: skip


@pytest.mark.parametrize("typed", ["-o out.txt", "-o out.pdf", "--format pdf", "--json --format csv", "-o no/out.csv"])
def test_an_output_that_cannot_be_is_refused_before_anything_is_done(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("inspect tiny", "memory tiny", "bench tiny", "list"):
        with pytest.raises(UsageError):
            app(args=[*command.split(), *typed.split()], prog_name=PROGRAM)

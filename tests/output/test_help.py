"""Help pages at every width: nothing is cut, commands are whole, colours only where asked for."""

from __future__ import annotations

import re

import pytest

from moecli.cli.app import PROGRAM, Program, app
from moecli.cli.program import page
from moecli.output import help

SGR = re.compile(r"\x1b\[[0-9;]*m")


def pages() -> dict[str, help.Page]:
    import typer
    from typer.main import get_command

    program = get_command(app)
    top = typer.Context(program, info_name=PROGRAM)
    found = {name: program.get_command(top, name) for name in Program.table}
    return {"": page(program, top)} | {
        name: page(command, typer.Context(command, info_name=name, parent=top)) for name, command in found.items()
    }


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_page_is_as_wide_as_the_terminal_and_loses_nothing(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for name, shown in pages().items():
        text = help.text(shown, colours=False)
        body, _, examples = text.partition("Examples:\n")
        assert max(map(len, body.splitlines())) < width, name
        assert examples.splitlines() == [f"  {example}" for example in shown.examples]
        words = " ".join(text.split())
        rows = [row for section in shown.sections for row in section.rows]
        assert all(" ".join(meaning.split()) in words for _, meaning in rows), name
        assert SGR.sub("", help.text(shown, colours=True)) == text


def test_options_stand_under_headings_with_the_kind_of_their_values():
    sections = {section.heading: dict(section.rows) for section in pages()["run"].sections}
    assert list(sections) == ["Arguments", "Options", "Sampling", "Memory and processors", "Output"]
    assert "--temperature X" in sections["Sampling"] and "-n, --max-tokens N" in sections["Sampling"]
    formats = sections["Memory and processors"]["--dtype, --quant FORMAT"]
    assert all(word in formats for word in ("auto", "fp32", "bf16", "fp16", "q8", "int8", "q4", "nf4", "q3"))
    assert not any("<" in term for rows in sections.values() for term in rows)


def test_the_program_lists_every_command_under_a_heading_and_every_variable():
    top = pages()[""]
    listed = [term for section in top.sections for term, _ in section.rows]
    assert set(Program.table) < set(listed) and "HF_HOME" in listed

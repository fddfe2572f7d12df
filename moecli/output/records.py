"""The documents of --json as CSV or Markdown: a row a document, a column a key, or in Markdown the other way round."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecli.errors import printable
from moecli.output import terminal

_MOST_COLUMNS = 8  # of a Markdown table; more keys become its rows

Document = Mapping[str, Any]


def write(documents: Sequence[Document], form: str, output: Path | None, *, array: bool = False) -> None:
    """Print the documents as "json", "csv" or "md", or write them to a file.

    JSON: one document is an object, several are an array, as `array` says of any number.
    """
    if form == "json":
        terminal.write_json(list(documents) if array or len(documents) != 1 else documents[0], output)
        return
    rows = [dict(_flat(document)) for document in documents]
    for row in rows:
        row.pop("schema_version", None)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    made = _csv(names, cells) if form == "csv" else _markdown(names, cells)
    terminal.write_file(made.encode(), output)


def _flat(document: Document, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure by its path, as in router.top_k; lists of objects are left out."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif not (isinstance(value, Sequence) and any(isinstance(each, Mapping) for each in value)):
            yield above + key, value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return printable(str(value))


def _csv(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([names, *rows])
    return out.getvalue()


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [list(names), *map(list, rows)]
    if len(names) > _MOST_COLUMNS:
        table = [list(column) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"

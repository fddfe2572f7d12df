"""What the prose points to is there: links, and files named by their path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)[^)]*\)")
FILE = re.compile(r"`((?:moecli|tests|docs|benchmarks|training|completions|\.ci)/[\w./-]*)`")


def test_there_is_something_to_look_at() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = {name: (ROOT / page).parent / name for name in LINK.findall(text)}
    named = {name: ROOT / name for name in FILE.findall(text)}
    assert [name for name, path in (linked | named).items() if not path.exists()] == []


def test_the_rooms_are_in_the_order_of_the_import_contract() -> None:
    contract = re.findall(r'"moecli\.(\w+)",', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `moecli/(\w+)/`", page, re.MULTILINE)
    loose = [path.stem for path in (ROOT / "moecli").glob("*.py") if not path.stem.startswith("_")]
    assert rooms == [name for name in contract if name not in loose]


def test_the_glossary_is_in_alphabetical_order() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = [row.casefold() for row in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)][1:]
    assert words == sorted(words) and len(words) == len(set(words)) > 50

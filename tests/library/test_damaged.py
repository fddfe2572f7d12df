"""One store that is damaged, unreadable or half deleted: shown as that, removed by name, and in nobody's way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moecli import settings
from moecli.cli.options import complete_model
from moecli.errors import CheckpointError
from moecli.library import listing, stores
from moecli.library.removal import removal
from moecli.library.resolve import Kind, resolve
from moecli.store import journal, manifest
from moecli.store.manifest import Origin
from moecli.store.packed import PARTIAL, REMOVED
from tests.support.stores import contents, packed

PLAN: dict[str, Any] = {
    "schema": 1, "dtype": "q4", "compute": "bf16", "roles": {},
    "origin": {"model": "m", "repo": None, "revision": None, "path": "/m", "fingerprint": "f"},
}  # fmt: skip


def plan(**changes: Any) -> bytes:
    return json.dumps(PLAN | changes).encode() + b"\n"


def origin(**changes: Any) -> bytes:
    return plan(origin=PLAN["origin"] | changes)


JOURNALS = {
    "empty": b"",
    "binary": bytes(range(256)) * 40,
    "zeros": bytes(4096),
    "text": b"not JSON at all\n",
    "number": b"17\n",
    "list": b"[1, 2]\n",
    "null": b"null\n",
    "no keys": b"{}\n",
    "deep list": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "deep object": b'{"origin":' * 900 + b"1" + b"}" * 900 + b"\n",
    "long number": b'{"dtype": ' + b"7" * 5000 + b"}\n",
    "origin is text": plan(origin="x"),
    "origin is null": plan(origin=None),
    "origin is a list": plan(origin=[["model", "x"]]),
    "origin lacks keys": plan(origin={"model": "x"}),
    "origin has a model of no text": origin(model=5),
    "origin has a repo of no text": origin(repo=["x"]),
    "origin has a path of no text": origin(path={}),
    "origin has infinite revision": origin(revision=float("inf")),
    "format of no text": plan(dtype=["q4"]),
    "UTF-16": plan().decode().encode("utf-16"),
    "latin-1": plan(dtype="q4").replace(b"q4", b"q\xe9"),
    "half of a surrogate pair": plan().replace(b'"/m"', b'"/\\ud800"')[:-20] + b"\n",
}


def damaged(content: bytes | None, name: str = "broken-q4") -> Path:
    folder = settings.stores() / f"{name}{PARTIAL}"
    folder.mkdir(parents=True)
    if content is None:
        (folder / journal.FILE).mkdir()
    else:
        (folder / journal.FILE).write_bytes(content)
    return folder


@pytest.mark.parametrize("content", [*JOURNALS.values(), None], ids=[*JOURNALS, "a folder"])
def test_a_damaged_journal_is_in_nobodys_way(content: bytes | None) -> None:
    folder = damaged(content)
    assert resolve("tiny").kind is Kind.BUILT_IN
    (shown,) = (model for model in listing.here() if model.path == folder)
    assert (shown.format, shown.complete, shown.damaged) == ("unknown", False, True)
    assert dict(complete_model("broken")) == {folder.name: "unfinished"}
    if content is not None:
        removal(resolve(folder.name, own_name=True)).carry_out()
        assert not list(settings.stores().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("content", [JOURNALS[name] for name in ("binary", "deep object", "origin is text", "no keys")])
def test_a_damaged_journal_is_work_to_be_done_again(content: bytes, checkpoint: Path, store: Any) -> None:
    folder = damaged(content)
    target = folder.with_name(folder.name.removesuffix(PARTIAL))
    assert contents(packed(checkpoint, target).folder) == contents(store.folder)


EVENTS = {
    "done is a number": b'{"done": 5}\n',
    "done holds lists": b'{"done": [["x"]], "kept": []}\n',
    "kept holds numbers": b'{"done": [], "kept": [7]}\n',
    "sealed without sums": b'{"sealed": "dense.safetensors"}\n',
    "sealed with words": b'{"sealed": "dense.safetensors", "sums": "x"}\n',
    "sealed in bytes that are words": b'{"sealed": "x", "sums": {"bytes": "many", "sha256": "", "parts": []}}\n',
    "sealed is a list": b'{"sealed": [], "sums": {"bytes": 1, "sha256": "", "parts": []}}\n',
    "deep": b'{"done": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_an_event_that_cannot_be_believed_ends_the_journal(event: bytes, tmp_path: Path) -> None:
    good = b'{"done": ["a"], "kept": []}\n'
    (tmp_path / journal.FILE).write_bytes(plan() + good + event + b'{"done": ["b"], "kept": []}\n')
    assert journal.Journal(tmp_path, PLAN).done == {"a"}
    assert (tmp_path / journal.FILE).read_bytes() == plan() + good


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b'{"a":' * 5000, b"9" * 5000, b'{"schema_version": ' + b"1" * 5000 + b"}", b"\xff"]
)
def test_a_damaged_manifest_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / manifest.FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged") as refused:
        manifest.read(tmp_path)
    assert "moecli rm" in str(refused.value.hint) and len(refused.value.message) < 500


def test_a_name_that_is_not_utf8_is_written_as_text(tmp_path: Path) -> None:
    from moecli.store.source import _text

    found = Origin(_text("caf\udce9"), None, None, _text("/caf\udce9"), "f")
    assert manifest.read_origin({**PLAN["origin"], "model": found.model}).model == "caf\\udce9"


@pytest.mark.slow
@pytest.mark.parametrize("remains", [0, 1, 3, 99])
def test_what_a_killed_removal_left_is_shown_and_taken_up(remains: int, checkpoint: Path, store: Any) -> None:
    target = settings.stores() / "five-layers-q4"
    going = shutil.copytree(store.folder, target.with_name(target.name + REMOVED))
    for file in sorted(going.iterdir())[remains:]:
        file.unlink()
    (shown,) = stores.local_stores()
    assert (shown.name, shown.complete) == (going.name, False)
    assert resolve("five-layers-q4", own_name=True).store == shown
    if remains % 2:
        removal(resolve("five-layers-q4", own_name=True)).carry_out()
        assert not going.exists()
    else:
        assert contents(packed(checkpoint, target).folder) == contents(store.folder) and not going.exists()

"""What strangers wrote, wherever it comes from, on a real terminal: nothing in it is obeyed, all of it is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import moecli as package
from moecli.errors import json_text, lines_printable, printable
from moecli.output.terminal import steerless
from moecli.routing import files
from tests.support import forked, reports
from tests.support.hub_server import serve_library

pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX")

TINY = Path(package.__file__).parent / "tiny"
TITLE, COLOUR, C1, TURNED, BELL, DELETE, MARKUP = (
    "\x1b]0;owned\x07", "\x1b[31m", "\x9b31m", "\u202e", "\x07", "\x7f", "[bold red]x[/]",
)  # fmt: skip
ALL = f"{TITLE}{COLOUR}{C1}{TURNED}{BELL}{DELETE}{MARKUP}"


def _edited(folder: Path, name: str = "config.json", **changes: object) -> Path:
    """The built-in model with other values in one of its JSON files."""
    model = folder / "model"
    shutil.copytree(TINY, model)
    path = model / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))
    return model


def _header(folder: Path, **changes: object) -> Path:
    """The built-in model, with another entry for the first tensor of its header."""
    model = _edited(folder)
    data = (model / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    entry = header.pop(name)
    renamed = str(changes.pop("name", name))
    text = json.dumps({renamed: entry | changes} | header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return model


def _folder(folder: Path) -> Path:
    model = folder / f"model{ALL.replace('/', '')}"
    shutil.copytree(TINY, model)
    return model


def _named(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def _index(folder: Path) -> Path:
    model = _edited(folder)
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": f"{ALL.replace('/', '')}.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def _template(folder: Path) -> Path:
    model = _edited(folder)
    (model / "chat_template.jinja").write_text("{{ raise_exception(" + json.dumps(ALL) + ") }}")
    return model


def _trace(folder: Path, name: str) -> Path:
    trace = reports.trace(layers=1, tokens=40, domains=(f"a{ALL}", "b"))
    object.__setattr__(trace, "model", ALL)
    files.write(trace, folder / name)
    return folder / name


def _store(folder: Path, manifest: str) -> dict[str, str]:
    """A MOECLI_HOME with a store of a hostile name and manifest."""
    store = folder / "home" / "models" / f"evil{ALL.replace('/', '')}"
    store.mkdir(parents=True)
    (store / "moecli.json").write_text(manifest)
    return {"MOECLI_HOME": str(folder / "home")}


@pytest.fixture(scope="module", autouse=True)
def _ready() -> None:
    forked.preload()


Place = Callable[[Path], tuple[object, ...]]
PLACES: dict[str, Place] = {
    "value of config.json": lambda f: ("inspect", _edited(f, hidden_act=ALL)),
    "key of config.json": lambda f: ("inspect", _edited(f, **{ALL: 1})),
    "model_type": lambda f: ("inspect", _edited(f, model_type=ALL)),
    "architecture": lambda f: ("inspect", _edited(f, model_type=ALL, architectures=[ALL])),
    "type of a value": lambda f: ("inspect", _edited(f, num_hidden_layers=ALL)),
    "index": lambda f: ("inspect", _index(f)),
    "dtype in a header": lambda f: ("inspect", _header(f, dtype=ALL)),
    "name of a tensor": lambda f: ("inspect", _header(f, name=ALL)),
    "shape in a header": lambda f: ("inspect", _header(f, shape=ALL)),
    "folder": lambda f: ("inspect", _folder(f)),
    "folder, run": lambda f: ("run", _folder(f), "a", "-n", "1"),
    "folder, memory": lambda f: ("memory", _folder(f)),
    "folder, verify": lambda f: ("verify", _folder(f)),
    "MODEL": lambda f: ("inspect", f"model{ALL}"),
    "command": lambda f: (ALL,),
    "option": lambda f: ("inspect", "tiny", f"--{ALL}"),
    "value of an option": lambda f: ("inspect", "tiny", "--routing", "--format", ALL),
    "size": lambda f: ("memory", "tiny", "--ram", ALL),
    "tokenizer": lambda f: ("run", _edited(f, "tokenizer.json", model={"type": ALL}), "a", "-n", "1"),
    "added token": lambda f: ("run", _edited(f, "tokenizer_config.json", added_tokens_decoder={ALL: 1}), "a"),
    "chat template": lambda f: ("run", _template(f), "a", "-n", "1"),
    "prompts, name": lambda f: ("inspect", "tiny", "--routing", "--prompts", f / ALL.replace("/", "")),
    "prompts, line": lambda f: (
        "inspect", "tiny", "--routing", "--prompts", _named(f, "p.jsonl", json.dumps({"a": ALL}, ensure_ascii=False))),
    "trace, name": lambda f: ("inspect", "--routing", "--from", f / ALL.replace("/", "")),
    "trace": lambda f: ("inspect", "--routing", "--from", _trace(f, "trace")),
    "trace, JSON": lambda f: ("inspect", "--routing", "--from", _trace(f, "t.jsonl"), "--json"),
    "trace, CSV of it": lambda f: ("inspect", "--routing", "--from", _trace(f, "trace"), "--format", "csv"),
    "trace, Markdown of it": lambda f: ("inspect", "--routing", "--from", _trace(f, "trace"), "--format", "md"),
    "trace, page of it": lambda f: ("inspect", "--routing", "--from", _trace(f, "trace"), "--format", "html"),
    "CSV": lambda f: ("inspect", "--routing", "--from", _named(f, "t.csv", f"{ALL}\n")),
    "output": lambda f: ("inspect", "--routing", "--from", _trace(f, "trace"), "-o", f / "no" / ALL),
}  # fmt: skip


def check(shown: str) -> None:
    """Everything prints. What begins a line anew are our own lines of progress."""
    assert "Traceback" not in shown
    assert not [letter for letter in shown if not letter.isprintable() and letter not in "\n\t\r"], shown


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_on_a_terminal(tmp_path: Path, place: str) -> None:
    code, shown = forked.moecli_on_terminal(*map(str, PLACES[place](tmp_path)), environment={"MOECLI_THREADS": "1"})
    assert code in (0, 1, 2) and shown.strip()
    check(shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MOECLI_LOG", "MOECLI_THREADS", "MOECLI_KERNEL", "MOECLI_ISA", "HF_ENDPOINT", "HF_HOME", "MOECLI_HOME"]
)
def test_variables(name: str) -> None:
    value = f"~{ALL}" if name.endswith("HOME") else ALL
    for arguments in (("pull", "mixtral", "--dry-run"), ("doctor", "--quiet"), ("run", "tiny", "a", "-n", "1")):
        code, shown = forked.moecli_on_terminal(*arguments, environment={name: value})
        assert code in (0, 1, 2, 3)
        check(shown)


@pytest.mark.slow
def test_a_home_of_hostile_stores(tmp_path: Path) -> None:
    for manifest in (ALL, json.dumps({"schema": ALL, "dtype": ALL, "origin": {"model": ALL}}), "{}"):
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        environment = _store(tmp_path, manifest)
        for arguments in (("list",), ("list", "--json"), ("doctor",), ("run", "evil", "a")):
            code, shown = forked.moecli_on_terminal(*arguments, environment=environment)
            assert code in (0, 1)
            check(shown)


@pytest.mark.slow
def test_a_hostile_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_library(monkeypatch) as hub:
        hub.put("o/m/config.json", json.dumps({"model_type": ALL, "architectures": [ALL]}).encode())
        hub.listed.append({"rfilename": f"{ALL}.safetensors", "size": 1, "blobId": ALL})
        for arguments in (("pull", "o/m", "--dry-run"), ("inspect", "o/m"), ("pull", f"o/m@{ALL}", "--yes")):
            code, shown = forked.moecli_on_terminal(*arguments, environment={"HF_ENDPOINT": hub.url})
            assert code == 1
            check(shown)
        hub.status = 500
        code, shown = forked.moecli_on_terminal("inspect", "o/m", environment={"HF_ENDPOINT": hub.url})
        assert code == 1
        check(shown)


@pytest.mark.slow
def test_pipes_too_but_for_what_programs_read(tmp_path: Path) -> None:
    """Talk and tables are for people wherever they go; JSON, answers and paths are true."""
    model = _folder(tmp_path)
    card = forked.moecli("inspect", model)
    assert card.code == 0
    check(card.out.decode())
    assert printable(model.name)[:40] in card.out.decode() and MARKUP.replace("/", "") in card.out.decode()
    document = forked.moecli("inspect", model, "--json").out.decode()
    check(document)
    assert json.loads(document)["model"] == model.name
    packed = forked.moecli("pack", model, "--quiet", environment={"MOECLI_HOME": str(tmp_path), "MOECLI_THREADS": "1"})
    assert packed.out.decode() == f"{tmp_path}/models/{model.name}-q4\n"
    missing = forked.moecli("inspect", f"./{ALL}")
    assert missing.code == 1
    check(missing.err)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("漢字 é ü ß — “x” 👩‍👩‍👧 می‌خواهم שלום\u200f\u00a0\u3000\ufeff", None),  # joiners, marks, spaces of scripts
        ("\x1b]0;t\x07\x1b[31m", "\\x1b]0;t\\x07\\x1b[31m"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("a\u202eb\u2066c\u2069\u202a", "a\\u202eb\\u2066c\\u2069\\u202a"),
        ("one\r\ntwo\rthree", "one\ntwo\\x0dthree"),
        ("\x00\x08\x0b\x0c\x7f\u2028\u2029", "\\x00\\x08\\x0b\\x0c\\x7f\\u2028\\u2029"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_model_says(said: str, shown: str | None) -> None:
    assert steerless(said) == (said if shown is None else shown)
    if "\r\n" not in said:  # however it is cut into pieces
        assert "".join(map(steerless, said)) == steerless(said)


def test_lines_and_json() -> None:
    text = f"a\tb\n{ALL}\u00e9\ud800\U000e0001\n"
    assert lines_printable(text).count("\n") == 2 and "\t" in lines_printable(text)
    check(lines_printable(text))
    for value in (text, {text: [text, 1.5, None]}, []):
        for indent in (None, 2):
            check(json_text(value, indent))
            assert json.loads(json_text(value, indent)) == value
    assert json_text("é漢") == '"é漢"'

"""The chat on a real terminal: commands, a context that runs full, and what a model may not do to the terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import moecli
from tests.support import forked

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")]

TINY = Path(moecli.__file__).parent / "tiny"
GREEDY = ("--temperature", "0", "--ram", "2GiB")


@pytest.fixture(scope="module", autouse=True)
def _ready() -> None:
    forked.preload()


def talk(tmp_path: Path, typed: str, *arguments: str, **environment: str) -> str:
    """What the terminal showed of a chat that ended well."""
    own = {"MOECLI_HOME": str(tmp_path / "home"), "COLUMNS": "80"} | environment
    code, shown = forked.moecli_on_terminal("run", *arguments, environment=own, typed=f"{typed}/bye\n".encode())
    assert code == 0 and "Traceback" not in shown, shown
    return shown


def test_a_chat_is_steered_saved_and_looked_into(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    commands = ["/help", "/set max-tokens 12", "The sea", "/show", "/stats", "/experts", f"/save {file}", "/clear",
                f"/load {file}", "/retry", "/set temprature 1", "/system be brief"]  # fmt: skip
    shown = talk(tmp_path, "".join(f"{each}\n" for each in commands), "tiny", *GREEDY, MOECLI_HISTORY="0")
    for text in ("max-tokens      12", "uses so far", "tokens of the last answer",
                 "1x, an even share", "wrote ", "2 messages; the next answer reads them first",
                 "did you mean temperature?", "no chat template"):  # fmt: skip
        assert text in shown or text.strip() in shown.split(), text  # a long path is a line of its own
    assert re.search(r"  /experts +a heatmap of", shown)
    assert len(re.findall(r"answer 12 tokens", shown)) == 3  # the second is in /stats
    first = json.loads(file.read_text())["messages"][1]["content"]
    assert shown.count(first.strip().splitlines()[0]) >= 2  # retried greedily it is the same
    assert not (tmp_path / "home" / "chat-history.jsonl").exists()


def test_a_context_that_runs_full_is_said_in_words(tmp_path: Path) -> None:
    shown = talk(tmp_path, "The sea\n and the sky\n and\n/clear\nThe sea\n", "tiny", *GREEDY, "--ctx", "40", "-n", "30")
    assert re.search(r"3\d of 40 tokens of the context are used: /clear begins anew", shown)
    assert "the context of 40 tokens is full, and the answer ends here: /clear" in shown.replace("\n", " ")
    assert "error: the prompt is" in shown and "/clear forgets the conversation" in shown
    assert len(re.findall(r"answer \d+ tokens", shown)) == 3


def test_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """One whose every "e" is a sequence that names the window; as text and as Markdown."""
    folder = shutil.copytree(TINY, tmp_path / "evil")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    evil = {"type": "Replace", "pattern": {"String": "e"}, "content": "\x1b]0;owned\x07\x9b31m\u202e"}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [*_decoders(tokenizer["decoder"]), evil]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shown = talk(tmp_path, "The sea\n/set markdown on\nThe sea\n", str(folder), *GREEDY, "-n", "12")
    assert shown.count("\\x1b]0;owned\\x07\\x9b31m\\u202e") > 3
    sequences = re.sub(r"\x1b\[\?2004[hl]\r?|\r", "", shown)  # the line editor's own: what is pasted is marked
    assert not [letter for letter in sequences if not letter.isprintable() and letter not in "\n\t"], sequences


def _decoders(decoder: dict[str, object]) -> list[object]:
    inner = decoder.get("decoders")
    return inner if isinstance(inner, list) else [decoder]

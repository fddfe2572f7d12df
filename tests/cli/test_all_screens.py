"""Every screen that README shows, and those beside them, on terminals and in pipes of 40, 80 and 120 columns.

Those of 40 columns show every character, the wider ones no more than ASCII.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.support import forked

README = Path(__file__).parents[2] / "README.md"
SGR = re.compile(r"\x1b\[[0-9;]*m")
CURSOR = re.compile(r"\x1b\[[0-9;?]*[A-HJKhl]")
COMPUTES = ("run", "pack", "verify", "rm", "bench", "pull")  # what these show is text, a path or nothing
MORE = (
    "moecli memory grok-1 --ram 16GiB", "moecli inspect gpt-oss-20b", "moecli list --known",
    "moecli memory mixtral granite-3.1-1b-a400m glam --ram 16GiB", "moecli memory --gpu list", "moecli doctor",
    "moecli memory mixtral --explain --dtype q4 --ram 16GiB", "moecli inspect dbrx --routing",
    "moecli pull mixtral --dtype q4 --dry-run", "moecli inspect --routing --from tiny.trace --by domain",
)  # fmt: skip

pytestmark = pytest.mark.slow


def commands() -> list[str]:
    """Those of README that show a screen; the routing of a model is that of a trace, which takes no seconds."""
    typed = re.findall(r"^\$ (moecli .+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    shown = [each for each in typed if each.split()[1] not in COMPUTES and "--routing" not in each]
    assert len(shown) > 5
    return list(dict.fromkeys([*shown, *MORE]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screens")
    forked.preload()
    (folder / "texts.jsonl").write_text(
        '{"text": "The sea, the sea.", "domain": "prose"}\n{"text": "def f(x):", "domain": "code"}\n'
    )
    made = forked.moecli(
        *f"inspect tiny --routing --prompts {folder}/texts.jsonl --save-trace {folder}/tiny.trace -q".split(),
        environment={"MOECLI_HOME": str(folder), "HF_HOME": str(folder)},
    )
    assert made.code == 0, made.err
    return folder


def ascii_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_screen_is_cut_or_too_wide(columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    own = {"MOECLI_HOME": str(folder), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "COLUMNS": str(columns)}
    faults = []
    for command in commands():
        arguments = shlex.split(command)[1:]
        few = ascii_streams if columns > 40 else lambda: None
        _, coloured = forked.moecli_on_terminal(
            *arguments, environment=own | {"TERM": "xterm", "NO_COLOR": ""}, before=few
        )
        assert columns == 40 or coloured.isascii(), command
        shown = {"terminal": SGR.sub("", coloured).replace("\r", "\n")}
        assert "\x1b" not in shown["terminal"], command
        if columns == 40:  # where most must be left out
            piped = forked.moecli(*arguments, environment=own, before=ascii_streams)
            assert "\x1b" not in piped.err and "Traceback" not in piped.err, piped.err
            shown["ascii"] = piped.out.decode("ascii")
            assert "\x1b" not in shown["ascii"]
        for where, text in shown.items():
            for line in text.splitlines():
                whole = "moecli " in line or "/" in line
                if "…" in line or (len(line.rstrip()) > columns and not whole):
                    faults.append((command, where, line))
    assert not faults, "\n".join(map(str, faults))


FIRST_TO_LAST = (  # of packed models, and what is refused
    "pack tiny --dtype q8 --output {home}/models/a-name-that-takes-half-of-a-line -q",
    "pack tiny --dtype q4 -v", "list", "verify tiny-q4", "run tiny Sea -n 4 -v --temperature 0",
    "bench tiny-q4 -n 2 --prompt-tokens 8", "rm tiny-q4", "rm tiny-q4 --yes", "rm tiny", "verify tiny", "pack mixtral",
    "pull nonsense", "run tiny The sea is blue", "memory mixtral --ram 6",
)  # fmt: skip


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_what_computes_and_what_is_refused_breaks_no_word(columns: int, tmp_path: Path) -> None:
    """On a terminal that has no more than ASCII, too: the cursor may move, lines fit or are commands to paste."""
    forked.preload()
    own = {"MOECLI_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "COLUMNS": str(columns)}
    faults = []
    for command in FIRST_TO_LAST:
        _, shown = forked.moecli_on_terminal(
            *command.format(home=tmp_path).split(),
            environment=own | {"TERM": "xterm"},
            before=ascii_streams,
            typed=b"n\n",
        )
        assert not re.search(r"\x1b\[[0-9;]*[349][0-9]", shown), shown  # no colour
        plain = CURSOR.sub("", SGR.sub("", shown))
        assert plain.isascii() and "\x1b" not in plain, plain
        for line in re.split(r"[\r\n]+", plain):
            if len(line.rstrip()) > columns and not ("moecli " in line or "/" in line):
                faults.append((command, line))
    assert not faults, "\n".join(map(str, faults))

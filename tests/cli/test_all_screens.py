"""Every screen that README shows, and those beside them, on terminals and in pipes of 40, 80 and 120 columns."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.support import forked

README = Path(__file__).parents[2] / "README.md"
SGR = re.compile(r"\x1b\[[0-9;]*m")
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


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_screen_is_cut_or_too_wide(columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    own = {"MOECLI_HOME": str(folder), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "COLUMNS": str(columns)}
    faults = []
    for command in commands():
        arguments = shlex.split(command)[1:]
        _, coloured = forked.moecli_on_terminal(*arguments, environment=own | {"TERM": "xterm", "NO_COLOR": ""})
        shown = {"terminal": SGR.sub("", coloured).replace("\r", "\n")}
        assert "\x1b" not in shown["terminal"], command
        if columns == 40:  # where most must be left out
            piped = forked.moecli(*arguments, environment=own, before=lambda: sys.stdout.reconfigure(encoding="ascii"))
            assert "\x1b" not in piped.err and "Traceback" not in piped.err, piped.err
            shown["ascii"] = piped.out.decode("ascii")
            assert "\x1b" not in shown["ascii"]
        for where, text in shown.items():
            for line in text.splitlines():
                whole = "moecli " in line or "/" in line or line.startswith(("error:", "hint:"))
                if "…" in line or (len(line.rstrip()) > columns and not whole):
                    faults.append((command, where, line))
    assert not faults, "\n".join(map(str, faults))

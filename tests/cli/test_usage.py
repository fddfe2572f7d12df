"""Wrong usage: one style of error, and the hint that helps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from moecli import settings
from moecli.cli import elsewhere, run
from moecli.cli.app import PROGRAM, Program, app
from moecli.errors import UsageError


@pytest.mark.parametrize(
    ("typed", "error", "hint"),
    [
        ("run tiny The sea is blue", "several words", "moecli run tiny 'The sea is blue'"),
        ("run", "MODEL is missing", "moecli run tiny"),
        ("run tiny x --temperature warm", "--temperature warm is not a number", "0 is greedy"),
        ("run tiny x -n many", "--max-tokens many is not a whole number", "default: 512"),
        ("run tiny x --tempreature 1", "no option --tempreature", "did you mean --temperature"),
        ("run tiny x --ram", "--ram needs a value", "6GiB"),
        ("run tiny x --raw=1", "--raw takes no value", "moecli run --help"),
        ("run tiny x --ram 6", "--ram: 6 has no unit", "write 6GiB"),
        ("memory mixtral --vram 24000000000", "has no unit", "write 24000000000B"),
        ("memory mixtral --disk-speed 3", "--disk-speed: 3 has no unit", "write 3GiB"),
        ("memory mixtral --dtype Q4_K_M", "unknown --dtype 'Q4_K_M'", "the nearest is q4"),
        ("run tiny x --dtype float16", "unknown --dtype", "the nearest is fp16"),
        ("inspect tiny:q4 --routing --dtype q8", "cannot both be meant", "leave one out"),
        ("run tiny x -ngl 20", "no option -ngl", "--vram SIZE bounds"),
        ("run tiny x --n-cpu-moe=20", "no option --n-cpu-moe", "--vram SIZE bounds"),
        ("memory mixtral -ot exps=CPU", "no option -ot", "--vram SIZE and --ram SIZE"),
        ("bench tiny -c 4096", "no option -c", "--ctx N is the context"),
        ("run tiny x -t 8", "no option -t", "--threads N"),
        ("run tiny x --temp 0", "no option --temp", "--temperature X"),
        ("list -c 5", "no option -c", "moecli list has nothing of the kind; moecli run has --ctx N"),
        ("run -m tiny x", "no option -m", "MODEL is the first argument"),
        ("perplexity tiny -p x", "no option -p", "moecli run has -p TEXT"),
        ("run tiny x -p y", "cannot both be meant", "leave one"),
        ("run tiny notes.txt", "names a file", "-f notes.txt"),
        ("run tiny -f no/notes.txt", "No such file", "name a text file"),
        ("inspect tiny --routing --against q4", "--against: no model is called 'q4'", "did you mean dtype=q4?"),
        ("chat mixtral", "no command 'chat'", "moecli run mixtral"),
        ("download mixtral", "no command 'download'", "moecli pull mixtral"),
        ("tune mixtral", "no command 'tune'", "moecli --help"),
        ("server mixtral", "no command 'server'", "moecli serve"),
        ("lsit", "no command 'lsit'", "did you mean moecli list?"),
        ("mixtral hello", "no command 'mixtral'", "moecli run mixtral hello"),
        ("help runn", "no command 'runn'", "did you mean moecli run?"),
        ("--frobnicate", "no option --frobnicate", "moecli --help"),
    ],
)
def test_wrong_usage_is_told_in_one_style(tmp_path, monkeypatch, typed, error, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("the sea")
    with pytest.raises(UsageError) as refused:
        app(args=typed.split(), prog_name=PROGRAM)
    assert error in refused.value.message and hint in str(refused.value.hint)


def test_what_is_said_of_others_options_names_ours():
    """Nothing of ours is called so, and what the hints name is there."""
    context = typer.Context(get_command(app), info_name=PROGRAM)
    ours = {
        name: {option for each in context.command.get_command(context, name).params for option in each.opts}
        for name in Program.table
    }
    for option, meaning in elsewhere.OPTIONS.items():
        named = {word.strip(",;:") for word in meaning.split() if word.startswith("-")}
        assert named <= ours["run"], option
        assert any(option not in known for known in ours.values()), option
    assert not elsewhere.COMMANDS.keys() & set(Program.table)
    assert {meaning.split()[0] for meaning in elsewhere.COMMANDS.values()} <= {*Program.table, "--version"}


def test_options_that_the_user_always_wants(moecli, tmp_path):
    """A line a command, before what is typed."""
    file = tmp_path / "moecli/config"
    file.parent.mkdir()
    file.write_text("# mine\n\nmemory --dtype q4 --ram '12 GiB'  # of 16\nlist --quiet\n")
    assert moecli("ls").stdout == "tiny\n"
    found = json.loads(moecli("memory", "mixtral", "--json").stdout)
    assert (found["dtype"], found["ram_budget_bytes"]) == ("q4", 12 << 30)
    assert json.loads(moecli("memory", "mixtral", "--ram", "4GiB", "--json").stdout)["ram_budget_bytes"] == 4 << 30
    assert moecli("ls", MOECLI_CONFIG="/dev/null").stdout.startswith("name")
    file.write_text("ls --quiet  # a synonym")
    assert moecli("list").stdout == "tiny\n"
    file.write_text("list --format nonsense")
    refused = moecli("ls")
    assert refused.returncode == 2 and refused.stderr.startswith(f"note: {file} adds --format nonsense\nerror: ")


@pytest.mark.parametrize(
    ("line", "problem", "hint"),
    [
        ("list --quite", "there is no option --quite", "did you mean --quiet?"),
        ("run --ram=12GiB --thread=4", "there is no option --thread", "did you mean --threads"),
        ("run --ram 12GiB --ctx", "--ctx needs a value", ""),
        ("memory --frobnicate", "there is no option --frobnicate", "moecli memory --help"),
        ("rnu --ram 12GiB", "there is no command 'rnu'", "did you mean run?"),
        ("chat --ram 12GiB", "there is no command 'chat'", "did you mean run?"),
        ("tiny --ram 12GiB", "there is no command 'tiny'", "moecli --help lists the commands"),
    ],
)
def test_a_line_of_options_that_would_never_count_is_refused(moecli, tmp_path, line, problem, hint):
    """By every command, not only its own: nobody looks for a setting that is silently without effect."""
    (tmp_path / "mine").write_text(f"run --system '--frobnicate' -n40\n\n{line}\n")
    for command in ("doctor", "list"):
        refused = moecli(command, MOECLI_CONFIG=str(tmp_path / "mine"))
        first, second = refused.stderr.splitlines()
        assert (refused.returncode, refused.stdout) == (2, "")
        assert first == f"error: line 3 of {tmp_path / 'mine'}: {problem}"
        assert second.startswith("hint: ") and hint in second


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"run --system 'Be brief", "line 1 of .*: No closing quotation"),
        (b"\nrun tiny", "line 2 of .* is no command with options"),
        (b"run --system \xff", "cannot be read"),
    ],
)
def test_a_file_of_options_that_is_none(tmp_path, monkeypatch, content, problem):
    (tmp_path / "mine").write_bytes(content)
    monkeypatch.setenv("MOECLI_CONFIG", str(tmp_path / "mine"))
    with pytest.raises(UsageError, match=problem):
        settings.presets()
    monkeypatch.setenv("MOECLI_CONFIG", "/dev/zero")
    with pytest.raises(UsageError, match="larger than 64 KiB"):
        settings.presets()


def test_what_has_no_hash_cannot_be_verified_and_the_hint_names_what_can(moecli):
    refused = moecli("verify", "tiny")
    assert refused.returncode == 1 and refused.stderr.splitlines()[1].startswith("hint: moecli list ")


def test_with_json_a_failure_is_a_document_too(moecli):
    for arguments, kind, code in (
        (("run", "nothing-like-it", "x", "--json"), "ModelNotFound", 1),
        (("memory", "mixtral", "--ram", "6", "--json"), "UsageError", 2),
        (("list", "--json", "--frobnicate"), "UsageError", 2),
    ):
        result = moecli(*arguments)
        document = json.loads(result.stdout)
        assert document["schema_version"] == 1 and result.returncode == code
        error = document["error"]
        assert (error["kind"], error["exit_code"]) == (kind, code)
        assert result.stderr == f"error: {error['message']}\nhint: {error['hint']}\n"
    assert moecli("run", "nothing-like-it", "--", "--json").stdout == ""  # a prompt


def test_the_program_alone_shows_its_help_and_help_knows_the_commands(moecli):
    top = moecli()
    assert (top.returncode, top.stderr) == (0, "") and top.stdout == moecli("--help").stdout == moecli("help").stdout
    assert moecli("help", "memory").stdout == moecli("memory", "-h").stdout
    assert moecli("ls", "--json").stdout == moecli("list", "--json").stdout != ""


def test_errors_have_colour_on_a_terminal_alone(on_a_terminal, environment):
    del environment["NO_COLOR"]
    assert "\x1b[1;31merror:\x1b[0m there is no command" in on_a_terminal("runn")[2]
    assert "\x1b" not in on_a_terminal("run", "tiny", "x", "--ram", "6", "--no-color")[2]


def test_a_prompt_comes_from_an_option_a_file_or_stdin(tmp_path, monkeypatch):
    notes, piped = tmp_path / "notes.txt", tmp_path / "piped"
    notes.write_bytes("\ufeffThe sea\r\n".encode())
    for content, given, expected in (
        ("", ("The sea", None, None), "The sea"),
        ("", (None, "The sea", None), "The sea"),
        ("", (None, None, notes), "The sea"),
        ("", ("is wide", None, notes), "The sea\n\nis wide"),
        ("The sea\n", ("-", None, None), "The sea"),
        ("The sea\n", (None, None, Path("-")), "The sea"),
        ("Look:\n", ("is wide", None, notes), "Look:\n\nThe sea\n\nis wide"),
        ("", (None, "notes.txt", None), "notes.txt"),  # -p means the text itself
    ):
        piped.write_text(content)
        with piped.open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert run._read_prompt("tiny", *given) == expected


def test_a_failure_beside_a_thread_still_shows_all_that_was_written():
    code = (
        "import sys, threading, time; from moecli.cli import app; from moecli.errors import UsageError\n"
        "def end(**_): sys.stdout.write('half an answer'); raise UsageError('no')\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); app.app = end; del sys.argv[1:]\n"
        "app.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "half an answer", "error: no\n")

"""What the program must not load, and what it says about itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch", "bitsandbytes", "tokenizers", "safetensors", "huggingface_hub", "transformers", "numpy", "jinja2",
    "starlette", "uvicorn",
}  # fmt: skip
SLOW = {"pydantic", "rich"}  # nothing heavy, but help and TAB have no use for them
COMPLETIONS = {"bash": "moecli.bash", "zsh": "_moecli", "fish": "moecli.fish"}


@pytest.mark.parametrize(
    "argv",
    [
        ["--version"], ["-h"], ["--help"], ["run", "--help"], ["bench", "-h"], ["doctor", "-h"], ["serve", "-h"],
        ["run", "mixtrl", "x"], ["completion", "bash"], ["__complete", "zsh", "run", ""],
        ["inspect", "dbrx"], ["inspect", "mixtral", "grok-1", "llama-2-70b", "--json"], ["list"], ["list", "--known"],
    ],
)  # fmt: skip
def test_stays_light(argv, environment):
    code = (
        "import sys\nfrom moecli.cli.app import main\n"
        f"sys.argv = ['moecli', *{argv!r}]\n"
        "try: main()\nfinally: print('LOADED', *sorted(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", timeout=60
    )
    loaded = set(result.stderr.split("LOADED", 1)[1].split())
    assert bool(result.stdout) == ("mixtrl" not in argv)
    help_or_tab = {"-h", "--help", "__complete"} & set(argv)
    assert not {name.split(".")[0] for name in loaded} & (HEAVY | SLOW if help_or_tab else HEAVY)
    assert not (help_or_tab and [name for name in loaded if name.startswith(("moecli.library", "moecli.checkpoint"))])


def test_version_names_the_program_and_torch(moecli):
    from moecli import __version__

    assert moecli("--version").stdout.startswith(f"moecli {__version__} (torch ")


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_the_scripts_in_completions_are_what_the_command_prints(moecli, shell):
    script = Path(__file__).parents[2] / "completions" / COMPLETIONS[shell]
    assert moecli("completion", shell).stdout == script.read_text()


def test_an_unknown_shell_is_wrong_usage(moecli):
    result = moecli("completion", "tcsh")
    assert (result.returncode, result.stderr) == (2, "error: unknown SHELL 'tcsh'\nhint: it takes bash, zsh, fish\n")


@pytest.mark.slow
def test_every_command_has_help_and_an_example(moecli):
    from moecli.cli.app import Program

    for name in Program.table:
        text = moecli(name, "-h").stdout
        assert f"Usage: moecli {name}" in text and f"\n  moecli {name}" in text.partition("Examples:")[2], name


def test_every_variable_is_in_the_help(moecli):
    from moecli.settings import VARIABLES

    text = " ".join(moecli("--help").stdout.split())
    assert all(variable.name in text for variable in VARIABLES)

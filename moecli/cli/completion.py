"""`moecli completion SHELL`: print the completion script, the same that lies in completions/."""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated

import typer

EXAMPLES = "Example: moecli completion bash > ~/.local/share/bash-completion/completions/moecli"


class Shell(str, Enum):
    """The shells a script exists for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.", show_default=False)]) -> None:
    """Print the completion script for a shell.

    The script asks the installed moecli for every word, so it never goes stale.
    """
    from moecli.cli.app import PROGRAM, app

    os.environ[f"_{PROGRAM.upper()}_COMPLETE"] = f"source_{shell.value}"  # Typer's own door to its scripts
    app(args=[], prog_name=PROGRAM)

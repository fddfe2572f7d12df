"""`moecli completion SHELL`: print the completion script, the same that lies in completions/."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from moecli.output import terminal

EXAMPLES = "Example: moecli completion bash > ~/.local/share/bash-completion/completions/moecli"


class Shell(str, Enum):
    """The shells a script exists for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.", show_default=False)]) -> None:
    """Print the completion script for a shell."""
    terminal.write(script(shell.value))


def script(shell: str) -> str:
    """Typer's script for `shell`: it asks the installed moecli, so it never goes stale between versions."""
    from typer.completion import get_completion_script

    return get_completion_script(prog_name="moecli", complete_var="_MOECLI_COMPLETE", shell=shell).strip() + "\n"

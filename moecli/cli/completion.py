"""`moecli completion SHELL`: print the completion script, and answer what it asks at every TAB."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from moecli.cli import options
from moecli.errors import UsageError
from moecli.output import terminal

EXAMPLES = """
mkdir -p ~/.local/share/bash-completion/completions && moecli completion bash > ~/.local/share/bash-completion/completions/moecli
mkdir -p ~/.zfunc && moecli completion zsh > ~/.zfunc/_moecli  # and in ~/.zshrc: fpath+=~/.zfunc; autoload -U compinit; compinit
moecli completion fish > ~/.config/fish/completions/moecli.fish
"""  # noqa: E501  # a command that is to be pasted has no line ends

# Each asks `moecli __complete SHELL ...` for lines of a word, a tab and what it is; file names where there are none.
SCRIPTS: Mapping[str, str] = {
    "bash": r"""_moecli() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <("$1" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
}

complete -o bashdefault -o default -F _moecli moecli
""",
    "zsh": r"""#compdef moecli

_moecli() {
    local line word what
    local -a found
    for line in "${(@f)$("${(Q)words[1]}" __complete zsh "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        word=${line%%$'\t'*} what=${line#*$'\t'}
        [[ -n $word ]] && found+=("${word//:/\\:}${what:+:$what}")
    done
    if (( $#found )); then
        _describe -V moecli found
    else
        _files
    fi
}

if [[ $funcstack[1] == _moecli ]]; then
    _moecli "$@"
else
    compdef _moecli moecli
fi
""",
    "fish": r"""function __moecli_complete
    set -l words (commandline --tokenize --current-process --cut-at-cursor)
    set -l current (commandline --current-token --cut-at-cursor)
    set -l found ($words[1] __complete fish $words[2..] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end

complete --command moecli --no-files --arguments '(__moecli_complete)'
""",
}


def _complete_shell(incomplete: str) -> Iterator[options.Choice]:
    return ((shell, "") for shell in SCRIPTS if shell.startswith(incomplete))


def completion(
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=_complete_shell, show_default=False),
    ],
) -> None:
    """Print the completion script for a shell: put it where the examples say, and open a new shell.

    The script asks the installed moecli for every word, so it never goes stale.
    """
    if shell not in SCRIPTS:
        raise UsageError.unknown("SHELL", shell, ", ".join(SCRIPTS))
    terminal.write(SCRIPTS[shell])


def answer(group: Any, asked: Sequence[str]) -> None:
    """Print what may stand at the end of a line: a word, a tab and what it is, a line each.

    `asked` is the shell and the words after `moecli`; of bash the line and the characters at which it breaks words.
    """
    shell, *words = asked or ("",)
    cut = 0
    if shell == "bash":
        line, breaks = (*words, "", "")[:2]
        words = _words(line)[1:]
        last = words[-1] if words else ""
        cut = max((last.rfind(each) for each in breaks if each in "=:"), default=-1) + 1
    for word, what in candidates(group, words):
        if word.isprintable():
            terminal.write(f"{word[cut:]}\t{' '.join(what.split())}\n")


def _words(line: str) -> list[str]:
    """The words of a line that is not finished: after a blank, the last is empty."""
    for end in ("", "'", '"'):
        try:
            words = shlex.split(line + end)
        except ValueError:
            continue
        return words if end or not line[-1:].isspace() else [*words, ""]
    return line.split()


def candidates(group: Any, words: Sequence[str]) -> Iterator[options.Choice]:
    """What may stand in place of the last word, which may be empty."""
    *before, incomplete = words or ("",)
    command = group.get_command(None, before[0]) if before else None
    if command is None or command.name == "help":
        if not before or (command is not None and len(before) == 1):
            rows = ((name, summary) for _, name, summary in group.summaries())
            yield from (row for row in rows if row[0].startswith(incomplete))
        if not before:
            yield from (each for each in (("--help", ""), ("--version", "")) if each[0].startswith(incomplete or " "))
        return
    context = typer.Context(command)
    parameters: list[Any] = command.get_params(context)
    takes = {name: each for each in parameters if not getattr(each, "is_flag", True) for name in each.opts}
    plain = "--" in before
    name, equals, value = incomplete.partition("=")
    if not plain and before[-1] in takes:
        yield from _values(takes[before[-1]], context, incomplete)
    elif not plain and equals and name in takes:
        yield from ((f"{name}={word}", what) for word, what in _values(takes[name], context, value))
    elif not plain and incomplete.startswith("-"):
        for each in parameters:
            names = [name for name in each.opts if name.startswith(incomplete) and name.startswith("--")]
            yield from ((name, _brief(each.help)) for name in names)
    else:
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        place = sum(1 for _ in _arguments(before[1:], takes))
        if arguments and (place < len(arguments) or arguments[-1].nargs == -1):
            yield from _values(arguments[min(place, len(arguments) - 1)], context, incomplete)


def _arguments(words: Sequence[str], takes: Mapping[str, Any]) -> Iterator[str]:
    """The words that are neither options nor their values."""
    skip = plain = False
    for word in words:
        if skip:
            skip = False
        elif plain or not re.match(r"-.", word):
            yield word
        else:
            skip, plain = word in takes, word == "--"


def _values(parameter: Any, context: Any, incomplete: str) -> Iterator[options.Choice]:
    return ((item.value, item.help or "") for item in parameter.shell_complete(context, incomplete))


def _brief(text: str | None) -> str:
    """The first clause of a help."""
    return re.split(r"[.:;]( |$)", " ".join((text or "").split()))[0]

"""Options that mean the same in every command, declared once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from moecli import settings
from moecli.errors import UsageError
from moecli.formats import FORMATS
from moecli.formats.words import DENSE
from moecli.units import parse_size

DTYPES = ("auto", *FORMATS)
FORMS = ("table", "json", "csv", "md")  # of what a command shows
MEMORY = "Memory and processors"  # headings of the help
OUTPUT = "Output"
Choice = tuple[str, str]  # a word that can stand here, and what it is
Completer = Callable[[str], Iterable[Choice]]


def complete_local(incomplete: str) -> Iterator[Choice]:
    """What can be deleted here, by the names that `moecli list` shows; nothing is opened."""
    from moecli.model import catalog

    aliases = {entry.repo: entry.alias for entry in catalog.known()}
    stores = (name for name in _names(settings.stores()) if not name.startswith("."))
    here = {name: "unfinished" if name.endswith(".partial") else "packed" for name in stores}
    repositories = ("/".join(name.split("--")[1:]) for name in _names(settings.hub_cache()) if name[:8] == "models--")
    here |= {aliases.get(repo, repo): "from the Hub" for repo in repositories}
    return (each for each in here.items() if each[0].startswith(incomplete))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except OSError:
        return []


def complete_here(incomplete: str) -> Iterator[Choice]:
    """The same, and the built-in model."""
    from moecli.model.catalog import BUILT_IN

    if BUILT_IN.startswith(incomplete):
        yield BUILT_IN, "built in"
    yield from complete_local(incomplete)


def complete_model(incomplete: str) -> Iterator[Choice]:
    """What is on this machine, then aliases; touches no network and imports nothing heavy."""
    from moecli.model import catalog

    names = dict(complete_here(incomplete))
    for entry in catalog.known():
        names.setdefault(entry.alias, entry.repo or "")
    return (each for each in names.items() if each[0].startswith(incomplete))


def at_least(least: int) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """Refuse smaller numbers, naming the value; Typer's own range check does not."""

    def check(parameter: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and value < least:
            raise UsageError(f"{parameter.opts[0]} {value} is out of range", f"it takes {least} or more")
        return value

    return check


def is_file(path: Path) -> bool:
    """Whether a path names a file; one that cannot be looked at does not."""
    from moecli.hub import cache as hub_cache

    return hub_cache.is_file(path)


def check_output(option: str, file: Path | None) -> None:
    """UsageError or DiskError for a file that cannot be written, before anything takes long."""
    if file is None:
        return
    from moecli.hub.cache import is_folder
    from moecli.store import filesystem

    if is_folder(file):
        raise UsageError(f"{option} {file} is a folder", "name a file in it")
    if not is_folder(Path(os.path.realpath(file)).parent):
        raise UsageError(f"{option} {file}: there is no folder '{file.parent}'", "make it first, or name another one")
    filesystem.check_writable(file)


def sized(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """A size that can be read, as it was typed; UsageError naming the option for any other."""
    if value is not None:
        try:
            parse_size(value)
        except UsageError as error:
            raise UsageError(f"{parameter.opts[0]}: {error.message}", error.hint) from error
    return value


def form(format: str | None, json: bool, output: Path | None, takes: Sequence[str] = FORMS) -> str:
    """The form of the output: by --format or --json, else by the name of the file, else a table. UsageError if none."""
    named = output.suffix[1:].replace("txt", "table") if output else ""
    found = format or ("json" if json else named or "table")
    if found not in takes:
        given = format or str(output)
        raise UsageError(
            f"unknown {'--format' if format else '--output'} '{given}'", f"--format takes {', '.join(takes)}"
        )
    if json and found != "json":
        raise UsageError(f"--json and --format {found} cannot both be meant", "leave one of them out")
    check_output("--output", output)
    return found


def record_form(format: str | None, json: bool, output: Path | None) -> str:
    """The same where the table is for the screen alone."""
    found = form(format, json, output)
    if found == "table" and output is not None:
        raise UsageError(f"--output {output} needs a format", "name it .json, .csv or .md, or add --format")
    return found


def _log(wanted: bool) -> bool:
    """As MOECLI_LOG=debug; what that says itself is kept."""
    if wanted and settings.log_level() is None:
        from moecli.output import log

        log.start("debug")
    return wanted


def option(
    *names: str, help: str, metavar: str | None = None, panel: str | None = None, default: bool | str = False,
    values: Sequence[str] | None = None, complete: Completer | None = None,
    check: Callable[..., Any] | None = None,
) -> Any:  # fmt: skip
    """An option of a command: `values` is all it takes, `complete` yields them, `panel` is its heading in the help."""

    def listed(incomplete: str) -> Iterator[Choice]:
        return ((value, "") for value in values or () if value.startswith(incomplete))

    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=default, callback=check,
        autocompletion=complete or (listed if values else None),
    )  # fmt: skip


def with_options_of_fields(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses are filled from an option for each of their fields, in place."""
    own = signature(command, eval_str=True)
    tables: dict[str, tuple[Any, list[Parameter]]] = {}
    described: list[Parameter] = []
    for each in own.parameters.values():
        if not is_dataclass(each.default):
            described.append(each)
            continue
        kind: Any = type(each.default)
        hints = get_type_hints(kind, include_extras=True)
        table = [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            for field in fields(kind)
        ]
        tables[each.name] = kind, table
        described += table

    @wraps(command)
    def filled(**given: Any) -> None:
        for name, (kind, table) in tables.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in table})
        command(**given)

    filled.__signature__ = own.replace(parameters=described)  # type: ignore[attr-defined]  # what typer reads
    filled.__annotations__ = {each.name: each.annotation for each in described}
    return filled


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a GGUF file, a packed model, an alias (tiny, mixtral, dbrx, ...) or a Hub id "
        "org/name[:GGUF][@revision]; NAME:q4 is NAME with --dtype q4.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
LocalModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model on this machine, as `moecli list` names it, or its folder.",
        autocompletion=complete_here,
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    option(
        "--dtype", "--quant", metavar="FORMAT", panel=MEMORY, default=True, values=DTYPES,
        help=f"Format of the weights: {', '.join(DTYPES)}. auto: as stored if it fits.",
    ),
]  # fmt: skip
Dense = Annotated[
    str | None,
    option(
        "--dense", metavar="FORMAT", panel=MEMORY, values=DENSE,
        help=f"Format of what every token passes, beside experts of fewer bits: {', '.join(DENSE)}.",
    ),
]  # fmt: skip
Context = Annotated[
    int | None,
    option(
        "--ctx", metavar="N", panel=MEMORY, check=at_least(1),
        help="Context length in tokens, prompt and answer together.",
    ),
]  # fmt: skip
Threads = Annotated[
    int | None, option("--threads", metavar="N", panel=MEMORY, help="Number of compute threads.", check=at_least(1))
]
Ram = Annotated[
    str | None,
    option(
        "--ram", metavar="SIZE", panel=MEMORY, help="RAM budget, e.g. 6GiB; default: what is free now.", check=sized
    ),
]
Vram = Annotated[
    str | None,
    option("--vram", metavar="SIZE", panel=MEMORY, help="GPU memory budget; default: what is free now.", check=sized),
]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print one JSON document on stdout; failures, too.")]
Form = Annotated[
    str | None, option("--format", metavar="FORMAT", panel=OUTPUT, values=FORMS, help=f"{', '.join(FORMS)}.")
]
Output = Annotated[
    Path | None,
    option(
        "--output", "-o", metavar="FILE", panel=OUTPUT,
        help="Write to this file; its name tells the format: .json, .csv or .md.",
    ),
]  # fmt: skip
Quiet = Annotated[bool, option("--quiet", "-q", panel=OUTPUT, help="Show no progress and no statistics.")]
Verbose = Annotated[bool, option("--verbose", "-v", panel=OUTPUT, help="Show what is decided, and why.")]
Log = Annotated[  # of commands that decide nothing
    bool, option("--verbose", "-v", panel=OUTPUT, help="Log what is found, read and asked to stderr.", check=_log)
]
NoColor = Annotated[bool, option("--no-color", panel=OUTPUT, help="Use no colour.")]  # errors see it for themselves
System = Annotated[str | None, option(metavar="TEXT", help="System message for the chat template.")]
Raw = Annotated[bool, option("--raw", help="Use no chat template: continue the prompt as it is.")]
Tokenizer = Annotated[
    str | None,
    option(
        "--tokenizer", metavar="NAME", complete=complete_model,
        help="Take the tokenizer of this file, folder, model or Hub id instead of the model's own.",
    ),
]  # fmt: skip
Offline = Annotated[bool, option("--offline", help="Use no network; what is not on this machine is an error.")]
Yes = Annotated[bool, option("--yes", "-y", help="Assume yes for all questions.")]

"""What commands that run a model share: options, their check, and the way from MODEL to its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from moecli import settings
from moecli.cli import options
from moecli.errors import UsageError, printable
from moecli.experts.policies import DEFAULT, POLICIES
from moecli.formats.words import with_dense
from moecli.output import terminal
from moecli.units import parse_size

if TYPE_CHECKING:
    from moecli.engine.loaded import LoadOptions
    from moecli.library.resolve import ModelRef

SLOW = 1.0  # tokens per second: below it, the user is asked first

Policy = Annotated[
    str,
    options.option(
        "--policy", metavar="NAME", panel=options.MEMORY, default=True, values=tuple(POLICIES),
        help=f"Which expert leaves when memory is full: {', '.join(POLICIES)}. Matters where experts come from disk.",
    ),
]  # fmt: skip
Device = Annotated[
    str,
    options.option(
        "--device", metavar="DEVICE", panel=options.MEMORY, default=True, values=("auto", "cpu", "cuda"),
        help="Compute device: auto (a GPU if there is one), cpu, cuda, cuda:N.",
    ),
]  # fmt: skip
Seed = Annotated[
    int | None,
    options.option(
        "--seed", metavar="N", help="Random seed; the same seed gives the same text.", check=options.at_least(0)
    ),
]
Session = Annotated[
    Path | None,
    options.option(
        "--session", metavar="FILE",
        help="Keep what is read in this file; a prompt that begins alike later reads only what is new.",
    ),
]  # fmt: skip
ExpertCapacity = Annotated[
    int | None,
    options.option(
        "--expert-capacity", metavar="N", check=options.at_least(0),
        help="Tokens that an expert takes in one pass, of models that bound it (Switch); 0: all. Default: the model's.",
    ),
]  # fmt: skip


Also = Annotated[
    Path | None,
    options.option(
        "--also", metavar="FOLDER", panel=options.MEMORY,
        help="A copy of the packed model on another disk: experts are read from both.",
    ),
]  # fmt: skip
P = TypeVar("P", bound="Placing")


@dataclass(frozen=True, slots=True)
class Placing:
    """In what format, where and within how much memory a model runs: options of every command that runs one."""

    dtype: options.Dtype = "auto"
    dense: options.Dense = None
    ctx: options.Context = None
    ram: options.Ram = None
    policy: Policy = DEFAULT
    device: Device = "auto"
    vram: options.Vram = None
    threads: options.Threads = None

    def checked(self: P) -> P:
        """The same with one word for both formats. UsageError for a word that is not known."""
        dtype = with_dense(self.dtype, self.dense)
        if self.policy not in POLICIES:
            raise UsageError.unknown("--policy", self.policy, ", ".join(POLICIES))
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise UsageError.unknown("--device", self.device, "auto, cpu, cuda or cuda:N")
        return replace(self, dtype=dtype, dense=None)

    def find(
        self, model: str, offline: bool, quiet: bool, yes: bool, tokenizer: str | None = None
    ) -> tuple[ModelRef, bool]:
        """What MODEL means, its weights on this machine, and whether somebody has just agreed to run it.

        `yes`: that is agreed to already. `tokenizer`: what --tokenizer names.
        """
        from moecli.library.resolve import Kind, resolve

        found = with_tokenizer(resolve(model, dtype=self.dtype), tokenizer, offline)
        ref = with_weights(found, found.dtype, self.ram, self.ctx, offline, quiet, yes)
        if ref.kind is Kind.STORE and not ref.by_path and ref.name.casefold() != model.casefold() and not quiet:
            terminal.say(f"using {ref.name}, packed from {model}")
        return replace(ref, dtype=found.dtype), found.folder is None

    def load_options(self, dtype: str, expert_capacity: int | None = None) -> LoadOptions:
        """The same for the engine, in the format that MODEL turned out to be asked for in."""
        from moecli.engine.loaded import LoadOptions

        return LoadOptions(
            dtype=dtype, context=self.ctx, ram=None if self.ram is None else parse_size(self.ram),
            device=self.device, vram=None if self.vram is None else parse_size(self.vram), threads=self.threads,
            policy=self.policy, expert_capacity=expert_capacity,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlacingOne(Placing):
    """The same of a command that runs one model."""

    also: Also = None

    def load_options(self, dtype: str, expert_capacity: int | None = None) -> LoadOptions:
        return replace(Placing.load_options(self, dtype, expert_capacity), also=self.also)


def read_file(path: Path, option: str = "--file") -> str:
    """The text of a file that an option names. UsageError if it cannot be read."""
    from moecli.text import incoming

    shown = printable(str(path), 80)
    try:
        with path.open("rb") as file:
            content = incoming.read(file, shown)
    except OSError as error:
        raise UsageError(f"{option} {shown} cannot be read: {error.strerror}", "name a text file") from error
    return incoming.decode(content, shown, terminal.say).replace("\r\n", "\n")


def behind_stdin(typed: str, read: str = "") -> str:
    """What is piped in, what was read, what was typed, blank lines between; `-` typed is what is piped in."""
    typed = "" if typed == "-" else typed
    parts = (terminal.read_stdin().strip("\n"), read.strip("\n"), terminal.clean(typed))
    return "\n\n".join(part for part in parts if part)


def with_tokenizer(ref: ModelRef, name: str | None, offline: bool = False, check: bool = False) -> ModelRef:
    """The same model with the tokenizer that --tokenizer names, if it names one; `check`: it is tried at once."""
    if name is None:
        return ref
    from moecli.library import tokenizers

    path = tokenizers.find(name, offline)
    if check:
        tokenizers.check(path)
    return replace(ref, tokenizer=path)


def with_weights(
    ref: ModelRef, dtype: str, ram: str | None, context: int | None, offline: bool, quiet: bool, yes: bool = False
) -> ModelRef:
    """The same model, on this machine: fetched, if that is wanted. ModelNotFound if it is not."""
    if ref.folder is not None:
        return ref
    if ref.repo is None:
        raise ref.missing()
    from moecli.library import advice

    known = advice.advice_on(ref, dtype, ram, context)
    if offline or settings.offline() or not (yes or terminal.can_ask()) or (known is not None and not known.possible):
        raise advice.missing(ref, known)
    from moecli.cli import fetching

    return fetching.for_run(ref, known, dtype, ram, context, quiet, yes)

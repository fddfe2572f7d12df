"""The texts that `perplexity` and `compare` read: a file, token windows, prompts, or the passages that come along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from moecli.cli import options, running
from moecli.errors import UsageError
from moecli.output import terminal

if TYPE_CHECKING:
    from moecli.engine.loaded import OpenedModel
    from moecli.engine.windows import Cut, Window

Stride = Annotated[
    int | None,
    options.option(
        metavar="N", check=options.at_least(1),
        help="Tokens from one window's begin to the next one's; default: side by side. Fewer give more context.",
    ),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Texts:
    """Windows to score, where they are from, and how they were cut; None for what came as it was."""

    name: str
    windows: Sequence[Window]
    cut: Cut | None


def of_file(opened: OpenedModel, file: Path | None, ctx: int | None, stride: int | None) -> Texts:
    """A text, of stdin where no file is named, in windows; or the token windows that it holds."""
    from moecli.engine import windows

    piped = file is None or str(file) == "-"
    text = terminal.read_stdin() if piped or file is None else running.read_file(file, "FILE")
    name = "stdin" if piped else str(file)
    if not text.strip():
        raise UsageError(f"{name} holds no text", f"moecli perplexity {opened.ref.typed} FILE")
    if (given := windows.given(text, name, opened.spec.vocab_size)) is not None:
        return Texts(name, given, None)
    cut = windows.how_to_cut(opened.spec.context_length, ctx, stride, opened.tokenizer.before)
    return Texts(name, windows.windows(opened.tokenizer.encode(text, special=False), cut), cut)


def of_prompts(opened: OpenedModel, file: Path | None, ctx: int | None, raw: bool) -> Texts:
    """The prompts in a file, each a window, or the bundled passages, which are read without chat template."""
    from moecli.engine import windows
    from moecli.engine.chat import Conversation, GenerationConfig
    from moecli.engine.sampling import Sampling
    from moecli.routing import prompts

    if file is None:
        found, name = prompts.bundled(), "the bundled passages"
    elif str(file) == "-":
        found, name = prompts.parse(terminal.read_stdin_bytes(), "stdin", terminal.say), "stdin"
    else:
        found, name = prompts.read(file, terminal.say), str(file)
    empty = Conversation(opened, GenerationConfig(Sampling(), 0, raw=raw or file is None))
    longest = ctx or min(windows.LONGEST, opened.spec.context_length)
    texts = [empty.prompt(prompt.text, prompt.turns) for prompt in found]
    return Texts(name, [piece for ids in texts for piece in windows.pieces(ids, longest)], None)

"""What the lines of a batch ask of a model: requests as `run` makes them of one prompt, and a key of all they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from moecli.engine.answer import Request
from moecli.engine.chat import Conversation, GenerationConfig
from moecli.engine.loaded import OpenedModel
from moecli.engine.sessions import files_of
from moecli.errors import MoecliError
from moecli.routing.prompt_lines import Asked, Line, Unclear


@dataclass(frozen=True, slots=True)
class Item:
    """A line and what it asks, or the `problem` with it. The same `key` means the same answer.

    `need`: tokens of prompt and answer, at most.
    """

    line: Line
    key: str
    request: Request | None = None
    need: int = 0
    problem: str = ""


def items(opened: OpenedModel, config: GenerationConfig, lines: Sequence[Line], dtype: str) -> list[Item]:
    """Each line as a prompt by itself, in format `dtype`: with its own seed, else that of `config`, as all others."""
    files = files_of(opened)
    return [_item(opened, config, line, [files, dtype]) for line in lines]


def _item(opened: OpenedModel, config: GenerationConfig, line: Line, told: list[str]) -> Item:
    if isinstance(line, Unclear):
        return Item(line, _key([*told, line.content]), problem=line.problem)
    own = replace(
        config,
        seed=config.seed if line.seed is None else line.seed,
        max_tokens=line.max_tokens or config.max_tokens,
    )
    try:
        need, request = _request(opened, own, line)
    except MoecliError as error:
        return Item(line, _key([*told, line.text, own.seed]), problem=error.message)
    parts = [*told, list(request.prompt), asdict(own.sampling), own.seed, own.max_tokens, own.stops]
    return Item(line, _key(parts), request, need)


def _request(opened: OpenedModel, config: GenerationConfig, line: Asked) -> tuple[int, Request]:
    """MoecliError if the prompt holds no tokens, or more than the context."""
    conversation = Conversation(opened, config)
    prompt, longest = conversation.prompt(line.text, line.turns), opened.options.context or opened.spec.context_length
    if len(prompt) > longest:
        raise MoecliError(f"the prompt is {len(prompt)} tokens and the context {longest}")
    together = max if opened.spec.encoder else sum  # which reads one, while the decoder writes the other
    return min(longest, together((len(prompt), config.max_tokens))), conversation.request(prompt, config)


def _key(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]

"""A line of JSON for each prompt of a batch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from moecli.engine.answer import Answer, Request
from moecli.routing.prompt_lines import Line
from moecli.routing.tasks import Check


def answered(line: Line, key: str, request: Request, answer: Answer, check: Check | None) -> dict[str, Any]:
    """What `run --json` says of an answer, as far as it is this answer's own."""
    return _head(line, key) | {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_tokens": len(request.prompt),
        "completion_tokens": len(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "seed": request.seed,
        **({} if check is None else {"check": asdict(check)}),
    }


def failed(line: Line, key: str, problem: str) -> dict[str, Any]:
    """Of a prompt without an answer."""
    return _head(line, key) | {"error": problem}


def _head(line: Line, key: str) -> dict[str, Any]:
    """`key` stands for all that the answer depends on."""
    return {"line": line.number, **({} if line.id is None else {"id": line.id}), "key": key}

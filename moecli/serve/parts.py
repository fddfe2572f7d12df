"""Pieces of requests that several APIs have: numbers within bounds, and contents that are a text or parts of one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moecli.serve.http import Body, Refused

Unit = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=2**31)]


class Part(Body):
    """A part of a message."""

    type: str
    text: str | None = None


Content = str | list[Part] | None


def text_of(content: Content) -> str:
    """The whole text. Refused for parts that are none."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in ("text", "input_text") or part.text is None:
            raise Refused(400, f"parts of type '{part.type[:40]}' are not supported", "text is")
    return "\n".join(part.text or "" for part in content)


def sampled_from(top_k: int | None) -> int | None:
    """Of how many tokens: 0 and -1 both stand for all."""
    return None if top_k is None else max(0, top_k)


def nucleus(top_p: float | None) -> float | None:
    """The probability that candidates add up to: none at all still leaves the likeliest one."""
    return None if top_p is None else max(top_p, 1e-9)

"""What an answer consists of, and what parts it as it grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from moecli.text.tool_calls import ToolCall


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what is said, or of the reasoning before it."""

    text: str
    reasoning: bool = False


Part = Text | ToolCall


class Parts(Protocol):
    """Parts an answer as it grows."""

    def push(self, text: str) -> list[Part]:
        """What is certain now that this text is known."""
        ...

    def finish(self) -> list[Part]:
        """What was held back."""
        ...

"""One thing that is wrong with a machine, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from moecli.errors import MoecliError


@dataclass(frozen=True, slots=True)
class Problem:
    """Half a line each: what is wrong, with the value, and what to do or type."""

    what: str
    hint: str

    @classmethod
    def of(cls, error: MoecliError) -> Problem:
        return cls(error.message, error.hint or "")

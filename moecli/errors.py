"""Every failure a user or a file can cause: one sentence, one hint, one exit code."""

from __future__ import annotations


class MoecliError(Exception):
    """A failure that is explained. `hint` is what to type or do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MoecliError):
    """An option or argument that cannot be meant."""

    exit_code = 2

    @classmethod
    def unknown(cls, option: str, value: str, takes: str) -> UsageError:
        """A value that an option does not take; `takes` says what it does."""
        return cls(f"unknown {option} '{value}'", f"it takes {takes}")


class ModelNotFound(MoecliError):
    """A MODEL that names nothing on this machine."""


class ConfigError(MoecliError):
    """A `config.json` that is unreadable, unsupported or absurd."""


class CheckpointError(MoecliError):
    """Weights that are missing, damaged or in a format that is refused."""


class TextError(MoecliError):
    """A tokenizer or chat template that is missing, damaged or hostile."""


class NotEnoughMemory(MoecliError):
    """A plan that does not fit this machine."""


class DiskError(MoecliError):
    """A disk that is full, or a folder that cannot be written."""


class NetworkError(MoecliError):
    """The Hub cannot be reached, or says no."""


class Declined(MoecliError):
    """A question that was answered with no."""

"""The sampling settings and stop ids that a model's vendor recommends in its own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecli.errors import ConfigError
from moecli.text.files import read_object

_HIGHEST_ID = 2**31 - 1
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Raw values, None where the vendor says nothing. Whether to sample is for the caller to decide."""

    eos_ids: frozenset[int] = frozenset()
    bos_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """From generation_config.json; config.json answers for the ids it leaves out. Both may be absent."""
    name = "generation_config.json"
    generation = _Reader(read_object(folder / name, ConfigError), name)
    config = read_object(folder / "config.json", ConfigError)
    inner = config.get("text_config")
    model = _Reader({**inner, **config} if isinstance(inner, dict) else config, "config.json")
    return GenerationDefaults(
        eos_ids=generation.ids("eos_token_id") or model.ids("eos_token_id"),
        bos_id=min(generation.ids("bos_token_id") or model.ids("bos_token_id"), default=None),
        do_sample=generation.flag("do_sample"),
        temperature=generation.number("temperature", 0, 100),
        top_k=generation.count("top_k"),
        top_p=generation.number("top_p", 0, 1),
        min_p=generation.number("min_p", 0, 1),
        repetition_penalty=generation.number("repetition_penalty", 0, 100, above=True),
        max_new_tokens=generation.count("max_new_tokens") or None,
    )


class _Reader:
    """Typed values of one file; an absent key and null are the same."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self._values = values
        self._name = name

    def ids(self, key: str) -> frozenset[int]:
        """One id or a list; a negative one is how some files write "none"."""
        value = self._values.get(key)
        found = value if isinstance(value, list) else [] if value is None else [value]
        for number in found:
            if not _is_integer(number) or number > _HIGHEST_ID:
                raise self._error(key, number, "a token id")
        return frozenset(number for number in found if number >= 0)

    def flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def count(self, key: str) -> int | None:
        """A number of candidates; 0 is no limit, which some files write as -1."""
        value = self._values.get(key)
        if value is None:
            return None
        if not _is_integer(value) or not -1 <= value <= _HIGHEST_ID:
            raise self._error(key, value, "a whole number from 0")
        return max(0, int(value))

    def number(self, key: str, low: float, high: float, above: bool = False) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        numeric = isinstance(value, float) or _is_integer(value)
        # NaN fails every comparison, infinity the upper one
        if not numeric or not low <= value <= high or (above and value == low):
            raise self._error(key, value, f"a number {'above' if above else 'from'} {low} to {high}")
        return float(value)

    def _error(self, key: str, value: Any, wanted: str) -> ConfigError:
        shown = json.dumps(value)
        if len(shown) > _LONGEST_SHOWN:
            shown = shown[:_LONGEST_SHOWN] + "..."
        return ConfigError(f"{self._name}: {key} is {shown}, not {wanted}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Sizes as people write them: "6GiB" <-> bytes."""

from __future__ import annotations

import re

from moecli.errors import UsageError, printable

_FACTORS: dict[str, int] = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgtp", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", re.IGNORECASE)
_LARGEST = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes in `text`: "6GiB" and "6G" are binary, "6GB" is decimal, "24B" is bytes. UsageError without a unit."""
    match = _SIZE.fullmatch(text)
    factor: int | None = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"'{printable(text, 40)}' is not a size", "write a number and a unit: 6GiB, 512MiB or 20GB")
    size = float(match[1]) * factor
    if size and not match[2]:
        meant = f"{match[1]}GiB" if size < 100_000 else f"{match[1]}B for bytes"
        raise UsageError(f"{printable(text.strip(), 40)} has no unit", f"write {meant}")
    if size > _LARGEST:
        raise UsageError(f"'{printable(text, 40)}' is larger than any machine", "write fewer digits, such as 6GiB")
    return round(size)


def format_bytes(size: float) -> str:
    """Binary units, three significant figures: 512 MiB, 12.9 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{_three_figures(size)} {unit}"
        size /= 1024
    return f"{_three_figures(size)} TiB"


def _three_figures(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def round_up(size: int) -> str:
    """A size that can be given back as an option's value, never less than `size`."""
    unit, name = (2**30, "GiB") if size >= 10 * 2**30 else (2**20, "MiB")
    return f"{-(-size // unit)}{name}"


def format_duration(seconds: float) -> str:
    """8 s, 2 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def figure(value: float) -> str:
    """A rate as people read it: 12, 3.4, 0.0042."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

"""The words for a model's format: one for all large matrices, or one for its experts and one for what is dense."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from moecli.errors import UsageError, printable
from moecli.formats import FORMATS

DENSE = ("bf16", "fp16", "q8", "q4")  # what --dense takes
_DENSE = "-dense-"


@dataclass(frozen=True, slots=True)
class Formats:
    """What a word such as `q4` or `q4-dense-q8` means.

    `dense` is the format of what every token is multiplied with: token mixers, output head, plain feed-forward blocks.
    What stands beside routed experts in one layer, which kernels multiply together with them, is as `experts`.
    """

    experts: str
    dense: str

    @property
    def mixed(self) -> bool:
        """Whether the dense weights' format is one that somebody asked for."""
        return self.dense != self.experts


@cache
def formats_of(dtype: str) -> Formats:
    """The formats that a word names, whether there are such or not."""
    experts, apart, dense = dtype.partition(_DENSE)
    return Formats(experts, dense if apart else experts)


def with_dense(dtype: str, dense: str | None) -> str:
    """What --dtype and --dense ask for together. UsageError for words that mean nothing, alone or together."""
    check_dtype(dtype)
    if dense in (None, dtype):
        return dtype
    if formats_of(dtype).mixed:
        raise UsageError(f"--dtype {dtype} and --dense cannot both be meant", "leave --dense out")
    check_dtype(word := f"{dtype}{_DENSE}{dense}")
    return word


def is_dtype(name: str) -> bool:
    """Whether it is a word for a model's format."""
    found = formats_of(name)
    return found.experts in FORMATS and (name == found.experts or _is_more_precise(found))


def check_dtype(name: str) -> None:
    """UsageError unless --dtype takes it: a format, two, or auto."""
    if name == "auto" or is_dtype(name):
        return
    found = formats_of(name)
    for option, word, known in (("--dtype", found.experts, ("auto", *FORMATS)), ("--dense", found.dense, DENSE)):
        if word not in known and (option == "--dtype" or found.mixed):
            near, takes = nearest(word), f"it takes {', '.join(known)}"
            raise UsageError(
                f"unknown {option} '{printable(word, 40)}'",
                f"the nearest is {near}; {takes}" if near in known else takes,
            )
    if found.experts == "auto":
        raise UsageError(
            f"--dense {found.dense} goes with a format of the experts",
            "add --dtype q4, or name the model as NAME:q4-dense-q8",
        )
    raise UsageError(
        f"--dense {found.dense} is no more precise than experts in {found.experts}",
        "every token passes the dense weights, and they are few: name a format of more bits, or leave --dense out",
    )


def _is_more_precise(formats: Formats) -> bool:
    return formats.dense in DENSE and FORMATS[formats.dense].bits > FORMATS[formats.experts].bits


def nearest(word: str) -> str | None:
    """The format that other programs' word for one comes closest to: Q4_K_M, 4bit, int4, q5, float16, half."""
    plain = word.lower()
    words = {"half": "fp16", "f16": "fp16", "float16": "fp16", "float": "fp32", "full": "fp32", "fp8": "q8"}
    found = plain if plain in FORMATS else words.get(plain)
    if found is None and (digits := re.search(r"\d+", plain)):
        bits = int(digits[0][:3])
        below = {3: "q3", 5: "q4", 8: "q8"}  # 6 bits and 7 lose least in 8
        found = next((name for most, name in below.items() if bits <= most), {16: "bf16", 32: "fp32"}.get(bits))
    return found

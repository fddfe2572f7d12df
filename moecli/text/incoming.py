"""Text that people hand in, from bytes: marks, UTF-16, gzip are understood, and what cannot be read is told by line."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from typing import IO

from moecli.errors import TextError

_MOST = 256 * 2**20  # bytes

Tell = Callable[[str], None]

_GZIP = b"\x1f\x8b"
_MARKS = (  # the longer first: UTF-32's begins as UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NAMED = 5  # lines


def read(file: IO[bytes] | gzip.GzipFile, name: str) -> bytes:
    """All of a file or pipe. TextError for more than anybody means as a text; OSError as it comes."""
    content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise TextError(f"{name} holds more than {_MOST // 2**20} MiB of text", "split it")
    return content


def decode(content: bytes, name: str, tell: Tell) -> str:
    """The text, without its mark; `tell` gets a sentence on what is none. TextError for damaged gzip.

    UTF-8, or what a byte order mark says; of gzip what is inside. Bytes that are wrong become U+FFFD.
    """
    if content.startswith(_GZIP):
        content = _unpacked(content, name)
    mark, encoding = next((each for each in _MARKS if content.startswith(each[0])), (b"", "utf-8"))
    content = content[len(mark) :]
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode(encoding, "replace")
        told = [number for number, line in enumerate(lines(text), 1) if "\ufffd" in line]
        tell(f"note: {name} is not {encoding.upper()[:6].rstrip('-')} in {_places(told)}: wrong bytes became U+FFFD")
    if "\0" in text:
        told = [number for number, line in enumerate(lines(text), 1) if "\0" in line]
        tell(f"note: {name} holds NUL in {_places(told)}: UTF-16 is known by its byte order mark alone")
    return text


def lines(text: str) -> list[str]:
    """Lines end at \\n or \\r\\n and nowhere else: a form feed or U+2028 is a character of its line."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found if found[-1] else found[:-1]


def without_halves(text: str) -> str:
    """Halves of surrogate pairs, which JSON can hold and nothing can write, become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _places(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_NAMED]))
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _unpacked(content: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return read(file, name)
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{name} is damaged gzip: {error}", "gzip --test says more") from error

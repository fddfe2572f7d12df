"""How much the Hub may say and how long it may take: every bound on what a stranger's server sends."""

from __future__ import annotations

from moecli.errors import NetworkError

MIB = 1024**2

# Bytes
LARGEST_LISTING = 16 * MIB  # some sixty thousand files
LARGEST_CONFIG = 16 * MIB
LARGEST_INDEX = 64 * MIB
LARGEST_TEXT = 512 * MIB  # a tokenizer
LARGEST_TOKENIZER = 64 * MIB  # of another repository, held in memory
LARGEST_HEADERS = 64 * MIB  # of all weight files of one model together

# Numbers
MOST_SHARDS = 2000
MOST_VALUES = 4_000_000  # in one JSON text: each takes some 70 bytes of memory and as few as two of an answer
MOST_REDIRECTS = 10
LONGEST_NAME = 255  # bytes of a file's name, as file systems have it

# Time. The unit is HF_HUB_DOWNLOAD_TIMEOUT, the longest silence.
BEGIN = 3  # silences until the headers of the answer are complete, redirects included
WINDOW = 2  # silences in which so many bytes a second have to come:
SLOWEST = 1024
LONGEST_ANSWER = 120  # seconds for an answer that is read as a whole


def check_values(data: bytes, what: str) -> None:
    """NetworkError for a JSON text that is small and would fill the memory."""
    values = sum(map(data.count, (b"{", b"[", b",")))
    if values > MOST_VALUES:
        raise NetworkError(f"{what} holds {values:,} values, which cannot be right")

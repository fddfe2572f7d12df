"""Turn one file of a package (HTML, man page, message catalogue, text...) into plain paragraphs."""

from __future__ import annotations

import bz2
import gettext
import gzip
import html
import io
import re
import struct
import zlib
from pathlib import Path

DROPPED = re.compile(
    r"<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^>\[]*(\[.*?\])?[^>]*>|"
    r"<(script|style|head|pre|nav|programlisting|screen|synopsis|code-block|verbatim|literallayout)\b"
    r"[^>]*>.*?</\2>",
    re.S | re.I,
)
BLOCK = re.compile(
    r"</?(p|div|h\d|li|ul|ol|dl|dt|dd|tr|td|th|table|br|body|title|para|simpara|section|sect\d|chapter|"
    r"listitem|itemizedlist|orderedlist|entry|row|term|item|note|blockquote|figure|caption|figcaption|"
    r"page|info|desc|credit|media|steps|list|hr|header|footer|main|article|subtitle|tip|warning)\b[^>]*>",
    re.I,
)
TAG = re.compile(r"<[^<>]{0,400}>")
SPACE = re.compile(r"\s+")
ROFF_BREAK = re.compile(r"^\.(PP|P|LP|TP|IP|sp|br|RS|RE|SH|SS|HP|TQ)\b")
ROFF_FONT = re.compile(r"^\.(B|I|BR|RB|IR|RI|BI|IB|SM|SB|UR|MT)\s+(.*)")
ROFF_SIGNS = {
    "\\-": "-",
    "\\(aq": "'",
    "\\(cq": "'",
    "\\(oq": "'",
    "\\(lq": '"',
    "\\(rq": '"',
    "\\(dq": '"',
    "\\(bu": "",
    "\\(em": "—",
    "\\(en": "–",
    "\\(co": "©",
    "\\e": "\\",
    "\\&": "",
    "\\ ": " ",
    "\\~": " ",
    "\\|": "",
    "\\^": "",
    "\\/": "",
    "\\,": "",
    "\\:": "",
    "\\%": "",
    "\\c": "",
    "\\(ha": "^",
    "\\(ti": "~",
}
STRING_MARK = b"\x00\x04\x00\x09"
MENU_MARK = re.compile(r"[_&~](?=\w)")


def paragraphs(path: Path) -> list[str]:
    """Plain paragraphs of one file; an empty list when the format is unknown."""
    name = path.name
    if name.endswith((".mo", ".gmo")):
        return catalogue(path)
    if name.endswith(".bzz"):
        return scripture(path)
    if name == "Rdata.rdb":
        return novels(path)
    data = path.read_bytes()
    try:
        if name.endswith((".gz", ".dz")):
            data, name = gzip.decompress(data), name[:-3]
        elif name.endswith(".bz2"):
            data, name = bz2.decompress(data), name[:-4]
    except (OSError, EOFError, zlib.error):
        return []
    if b"\0" in data[:4096]:
        return []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if "/man/" in path.as_posix() and re.search(r"\.\d\w*$", name):
        return man_page(text)
    if name.endswith((".html", ".htm", ".xhtml", ".page", ".docbook", ".xml", ".utf8")):
        return markup(text)
    if name.endswith(".lyx"):
        return lyx(text)
    if "/wordnet/data." in path.as_posix():
        return glosses(text)
    if "/crossfire/maps/" in path.as_posix():
        messages = re.findall(r"^msg\n(.*?)^endmsg$", text, re.M | re.S)
        return [part for message in messages for part in blocks(re.sub(r"(?m)^@.*", "", message))]
    if re.match(r"dialogs\w*\.lua$", name):
        spoken = re.findall(r'^(?:dialogStr|dialogId)\(.*"((?:[^"\\]|\\.)+)"\)$', text, re.M)
        return [re.sub(r"\\(.)", r"\1", part) for part in spoken]
    if "/stringtables/" in path.as_posix():
        text = re.sub(r"^[A-Z\d_]+$", "", text.replace("'''", "\n\n"), flags=re.M)
        return blocks(re.sub(r"<[^<>]*>|\[\[(.*?)\]\]|%\d*%", r"\1", text))
    if name.endswith(".pod"):
        return blocks(re.sub(r"[A-Z]<+\s*([^<>]*?)\s*>+", r"\1", text))
    if name.endswith(".info"):
        return blocks(re.sub(r"\x1f.*?\n.*?\n", "\n", text))
    if "endless-sky/data" in path.as_posix():
        return [found.strip() for found in re.findall(r"`([^`]{30,})`", text)]
    if "/fortunes/" in path.as_posix():
        return blocks(re.sub(r"^[%]+\s*$", "\n", text, flags=re.M))
    if name.endswith((".txt", ".des", ".dict")) or "/fortunes" in path.as_posix():
        return blocks(re.sub(r"^%+\s*$", "\n", text, flags=re.M))
    return []


def catalogue(path: Path) -> list[str]:
    """Messages of a compiled gettext catalogue: the English sources and the translations."""
    try:
        with path.open("rb") as file:
            entries = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError, ValueError, struct.error):
        return []
    english = [key for key in entries if isinstance(key, str)]
    translated = [value for key, value in entries.items() if value != key]
    return [part for text in english + translated for part in message(text)]


def message(text: str) -> list[str]:
    """One catalogue message as paragraphs, without context prefix and inline marks."""
    text = text.rsplit("\x04", 1)[-1]
    text = re.sub(r"</?\w[^<>]*>", "", text)
    return [SPACE.sub(" ", part).strip() for part in re.split(r"\n\s*\n", text)]


def scripture(path: Path) -> list[str]:
    """Verses of a SWORD zText module: zlib blocks whose offsets stand in the .bzs file beside it."""
    index, data = path.with_suffix(".bzs").read_bytes(), path.read_bytes()
    found: list[str] = []
    for start, size, _ in struct.iter_unpack("<III", index):
        if size:
            text = zlib.decompress(data[start : start + size]).decode("utf-8", "replace")
            text = re.sub(r"<(note|title|rdg)\b.*?</\1>", "", text, flags=re.S)
            text = re.sub(r"<(chapter|div|lb|milestone|p)\b[^>]*>", "\n", text)
            lines = (SPACE.sub(" ", TAG.sub("", line)).strip() for line in text.split("\n"))
            found += [line.replace("¶", "").strip() for line in lines if line]
    return found


def novels(path: Path) -> list[str]:
    """Paragraphs of an R database: chunks of a size and zlib data, in which every line of a book is a string."""
    data, found = path.read_bytes(), []
    while data:
        unpacker = zlib.decompressobj()
        chunk, data = unpacker.decompress(data[4:]), unpacker.unused_data
        lines, position = [], chunk.find(STRING_MARK)
        while position >= 0:
            start = position + len(STRING_MARK) + 4
            size = int.from_bytes(chunk[start - 4 : start], "big")
            lines.append(chunk[start : start + size].decode("latin-1"))
            position = chunk.find(STRING_MARK, start + size)
        found += blocks("\n".join(lines))
    return found


def glosses(text: str) -> list[str]:
    """Meanings and example sentences of a WordNet database, a related dozen to a paragraph."""
    meanings = [line.split(" | ", 1)[1].strip() for line in text.splitlines() if " | " in line]
    words = [line.split()[4].replace("_", " ") for line in text.splitlines() if " | " in line]
    lines = [f"{word}: {meaning}." for word, meaning in zip(words, meanings, strict=True)]
    return [" ".join(lines[start : start + 12]) for start in range(0, len(lines), 12)]


def markup(text: str) -> list[str]:
    """Paragraphs of an HTML, DocBook or Mallard file."""
    text = DROPPED.sub("\n\n", text)
    text = TAG.sub("", BLOCK.sub("\x00", text))
    return [SPACE.sub(" ", part).strip() for part in html.unescape(text).split("\x00")]


def man_page(text: str) -> list[str]:
    """Paragraphs of a man page in roff."""
    if re.search(r"^\.Dd ", text, re.M):
        return []
    parts: list[str] = []
    verbatim = False
    for line in text.splitlines():
        if line.startswith((".nf", ".EX")):
            verbatim = True
        elif line.startswith((".fi", ".EE")):
            verbatim = False
            parts.append("\x00")
        elif verbatim or line.startswith(('.\\"', "'\\\"")):
            continue
        elif ROFF_BREAK.match(line):
            parts.append("\x00")
        elif line.startswith((".", "'")):
            if match := ROFF_FONT.match(line):
                inner = match[2]
                glue = "" if len(match[1]) == 2 and match[1] not in ("SM", "SB", "UR", "MT") else " "
                words = re.findall(r'"([^"]*)"|(\S+)', inner)
                parts.append(glue.join(quoted or plain for quoted, plain in words))
        elif not line.strip():
            parts.append("\x00")
        else:
            parts.append(line)
    joined = re.sub(r"\\f(\[\w*\]|\(\w\w|\w)|\\s[+-]?\d", "", "\n".join(parts))
    for sign, plain in ROFF_SIGNS.items():
        joined = joined.replace(sign, plain)
    joined = re.sub(r"\\\[u([0-9A-F]{4})\]", lambda match: chr(int(match[1], 16)), joined)
    joined = re.sub(r"\\[\[(*].{0,6}?[\])]", "", joined)
    return [SPACE.sub(" ", part).strip() for part in joined.split("\x00")]


def lyx(text: str) -> list[str]:
    """Standard paragraphs of a LyX document."""
    text = re.sub(
        r"\\begin_inset (Note|Formula|CommandInset|Index|ERT|Graphics|listings|Tabular).*?\\end_inset",
        " ",
        text,
        flags=re.S,
    )
    text = re.sub(r"\\(begin|end)_(layout|inset|deeper|body|document).*", "\x00", text)
    text = re.sub(r"\\SpecialChar \w+|^[\\<#].*|^(status|wide|sideways|placement) .*", "", text, flags=re.M)
    return [SPACE.sub(" ", part.replace("\n", "")).strip() for part in text.split("\x00")]


def blocks(text: str) -> list[str]:
    """Blocks of plain text between empty lines, each joined to one line."""
    return [SPACE.sub(" ", part).strip() for part in re.split(r"\n\s*\n", io.StringIO(text).read())]

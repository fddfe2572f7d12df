"""Every environment variable and directory this program reads; nothing else looks at the environment."""

from __future__ import annotations

import contextlib
import locale
import os
import shlex
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moecli.errors import MoecliError, UsageError, printable


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable as `--help` and the README show it."""

    name: str
    meaning: str


VARIABLES = (
    Variable("MOECLI_HOME", "packed models and traces (default: moecli in the XDG data directory)"),
    Variable(
        "MOECLI_CONFIG",
        "file of options that are always added, a line a command: run --ram 12GiB (default: config in MOECLI_HOME)",
    ),
    Variable("MOECLI_API_KEY", "the key that serve asks for, as --api-key does, but not seen in lists of processes"),
    Variable("MOECLI_HISTORY", "0 keeps no messages of chats for the Up key of later ones"),
    Variable("MOECLI_KERNEL", "native, bnb, triton or torch: who computes (default: the fastest)"),
    Variable("MOECLI_ISA", "the instruction set of the native kernels, such as avx2 (default: the best here)"),
    Variable("MOECLI_THREADS", "compute threads (default: one per physical core, fewer while other programs are busy)"),
    Variable("MOECLI_DEBUG", "1 shows the traceback of an explained failure"),
    Variable("MOECLI_LOG", "debug, info, warning or error: log resolution, plan, reads and requests to stderr"),
    Variable("MOECLI_PROFILE", "1 times the parts of each layer and shows a table on stderr after the answer"),
    Variable("HF_HOME", "the Hugging Face folder; models lie in its hub/ (also HF_HUB_CACHE)"),
    Variable("HF_TOKEN", "access token for gated models"),
    Variable("HF_ENDPOINT", "another Hub"),
    Variable("HF_HUB_OFFLINE", "1 forbids the network, as --offline does"),
    Variable("NO_COLOR", "any value: no colour (FORCE_COLOR: colour even when piped)"),
)

HUB_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH")  # $NAMES in them count

_LARGEST_CONFIG = 1 << 16  # bytes

LOG_LEVELS = ("debug", "info", "warning", "error")


def read(name: str) -> str | None:
    """The value of a listed variable; an empty one counts as unset."""
    return os.environ.get(name) or None


def debug() -> bool:
    return read("MOECLI_DEBUG") == "1"


def profile() -> bool:
    return read("MOECLI_PROFILE") == "1"


def keeps_history() -> bool:
    return read("MOECLI_HISTORY") != "0"


def log_level() -> str | None:
    """The level of MOECLI_LOG in small letters; None without a log. UsageError for a word that is no level."""
    level = (read("MOECLI_LOG") or "").lower()
    if level and level not in LOG_LEVELS:
        raise UsageError(f"MOECLI_LOG is {level[:80]!a}, which is no level", f"it takes {', '.join(LOG_LEVELS)}")
    return level or None


def offline() -> bool:
    """Whether the network is forbidden. UsageError for a word that is neither yes nor no, as nobody may guess here."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        value = (read(name) or "").strip().lower()
        if value in ("1", "on", "yes", "true"):
            return True
        if value not in ("", "0", "off", "no", "false"):
            raise UsageError(f"{name} is {value[:80]!a}, which is neither yes nor no", "write 1 to forbid the network")
    return False


def use_utf8() -> None:
    """Before lines are edited: under LC_ALL=C Python reads UTF-8, and the line editor swallows what is not ASCII."""
    if sys.flags.utf8_mode and locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX"):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
            os.environ["LC_ALL"] = "C.UTF-8"  # the editor asks anew


def forbid_network() -> None:
    """What --offline says where everything below asks `offline`."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def let_threads_sleep() -> None:
    """Before torch is imported: threads that wait for each other give up the processor after some 100 microseconds.

    OpenMP's own default spins for milliseconds: beside busy processes a token took 4 to 8 times as long.
    """
    if not (os.environ.get("OMP_WAIT_POLICY") or os.environ.get("GOMP_SPINCOUNT")):
        os.environ["GOMP_SPINCOUNT"] = "20000"


def keep_freed_memory() -> None:
    """Before the first prompt: the allocator keeps what one layer frees for the next.

    Fresh pages took a tenth of a prompt's time; the peak stays the same. glibc alone has these two settings
    (M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of its malloc.h); the user's own values stay.
    """
    if any(os.environ.get(name) for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(-1, 512 * 2**20)
        allocator.mallopt(-3, 32 * 2**20)


def return_freed_memory() -> None:
    """After weights were converted: what that took goes back to the system. glibc alone keeps it, and has this call."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def hub_cache() -> Path:
    """The Hugging Face cache, found by huggingface_hub's own rules without importing it.

    UsageError where the variable that names it leads to something that is no folder.
    """
    for name, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if (chosen := _folder(name)) is not None:
            _check_folder(name, chosen)
            return chosen / inside
    return _hub_home() / "hub"


def hub_token_file() -> Path:
    """Where a login leaves its token, by the same rules."""
    return _folder("HF_TOKEN_PATH") or _hub_home() / "token"


def _hub_home() -> Path:
    return _folder("HF_HOME") or (_folder("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def forget_empty(names: Iterable[str]) -> None:
    """Variables that are set to nothing are not set: some libraries take nothing for a value."""
    for name in names:
        if os.environ.get(name) == "":
            del os.environ[name]


def home() -> Path:
    """Where this program keeps what it makes."""
    return _folder("MOECLI_HOME") or (_folder("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "moecli"


def config() -> Path:
    """The file of options that the user always wants."""
    return _folder("MOECLI_CONFIG") or home() / "config"


class Preset(NamedTuple):
    """What a line of the user's file adds to a command."""

    place: str
    """The line, for messages: "line 3 of PATH"."""
    command: str
    options: list[str]


def presets() -> list[Preset]:
    """What the user's file adds to commands, before what is typed, which therefore counts more.

    A line of it is a command and its options, quoted as in a shell; `#` begins a comment. UsageError for any other.
    MoecliError if it cannot be read; one in a folder that is closed to the user is none.
    """
    file, found = config(), []
    shown = printable(str(file), 80)
    try:
        file.stat()
    except OSError:
        return []
    hint = "mend it, or set MOECLI_CONFIG=/dev/null"
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_CONFIG + 1)
        if len(content) > _LARGEST_CONFIG:
            raise UsageError(f"{shown} is larger than {_LARGEST_CONFIG >> 10} KiB: no file of options", hint)
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise MoecliError(f"{shown} cannot be read: {error.strerror}", hint) from error
    except UnicodeError as error:
        raise UsageError(f"{shown} cannot be read: it is not UTF-8", hint) from error
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"line {number} of {shown}: {error}", "quote it as in a shell") from error
        if words and not (words[1:] and words[1].startswith("-")):
            raise UsageError(f"line {number} of {shown} is no command with options", "write: run --ram 12GiB")
        if words:
            found.append(Preset(f"line {number} of {shown}", words[0], words[1:]))
    return found


def stores() -> Path:
    """Where packed models lie."""
    return home() / "models"


def gguf() -> Path:
    """Where what GGUF files say of their models is written out."""
    return home() / "gguf"


def _check_folder(name: str, folder: Path) -> None:
    """What is not there yet can be made."""
    problem: str | None = None
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            problem = "is no folder"
    except FileNotFoundError:
        return
    except OSError as error:
        problem = f"cannot be used: {error.strerror}"
    if problem:
        raise UsageError(f"{name} is '{printable(str(folder), 80)}', which {problem}", "name a folder, or unset it")


def _folder(name: str) -> Path | None:
    """What a variable names, if it is set. UsageError for the home folder of nobody."""
    if (text := read(name)) is None:
        return None
    try:
        return Path(os.path.expandvars(text) if name in HUB_FOLDERS else text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{name} is '{printable(text, 80)}': nobody here has that home folder", "write the whole path"
        ) from error

"""The program in a fork of the test: its own descriptors, user and limits, without the seconds that imports take."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import moecli as package

NOBODY = 65534
_MODULES = (
    "tokenizers safetensors.torch huggingface_hub rich.progress rich.table "
    "rich.measure jinja2 encodings.idna encodings.utf_16_le"
)


@dataclass(frozen=True)
class Ended:
    """How a run ended, and all it wrote to its own stdout and stderr."""

    code: int
    out: bytes
    err: str


def preload() -> None:
    """Import now what a run would, so that a fork need not; another user perhaps could not read it."""
    for name in _MODULES.split():
        importlib.import_module(name)
    for each in pkgutil.walk_packages(package.__path__, "moecli."):
        if not each.name.endswith(("__main__", "template_worker", "_native")):
            importlib.import_module(each.name)


def moecli(
    *arguments: str | Path,
    stdin: bytes = b"",
    stdout: int | None = None,
    closed: Sequence[int] = (),
    before: Callable[[], object] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run to the end. `stdout` is a descriptor for it, `closed` are those it does not get, `before` runs first."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        child = os.fork()
        if child == 0:
            for number, descriptor in enumerate((given.fileno(), stdout or out.fileno(), err.fileno())):
                os.dup2(descriptor, number)
            for number in closed:
                os.close(number)
            os._exit(_main(arguments, closed, before, environment or {}))
        _, status = os.waitpid(child, 0)
        return Ended(os.waitstatus_to_exitcode(status), _all(out), _all(err).decode())


def _main(
    arguments: Sequence[str | Path], closed: Sequence[int], before: Callable[[], object], environment: Mapping[str, str]
) -> int:
    """In the child: what the interpreter does around a program."""
    code: object = 70
    try:
        streams = [None if number in closed else os.fdopen(number, "w" if number else "r") for number in range(3)]
        sys.stdin, sys.stdout, sys.stderr = streams  # type: ignore[assignment]
        sys.argv = ["moecli", *map(str, arguments)]
        os.environ.update({"MOECLI_THREADS": "1", **os.environ, **environment})  # a fork has no other of the pool
        before()
        from moecli.cli.app import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
    except BaseException:
        code = 120
    return code if isinstance(code, int) else 0 if code is None else 1


def _all(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def moecli_on_terminal(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], object] = lambda: None,
    typed: bytes = b"",
) -> tuple[int, str]:
    """Run with a terminal for all three streams; the exit code and what that showed. `typed` is typed at once."""
    import pty  # POSIX alone

    child, terminal = pty.fork()
    if child == 0:
        os._exit(_main(arguments, (), before, {"NO_COLOR": "1", "TERM": "dumb"} | dict(environment or {})))
    os.write(terminal, typed)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), shown.decode().replace("\r\n", "\n")

"""The program in a fork of the test: its own descriptors, user and limits, without the seconds that imports take."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

NOBODY = 65534


@dataclass(frozen=True)
class Ended:
    """How a run ended, and all it wrote to its own stdout and stderr."""

    code: int
    out: bytes
    err: str


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
        os.environ.update(environment)
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

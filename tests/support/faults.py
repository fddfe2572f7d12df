"""System calls that fail, or are the last before a kill: each command runs in a fork of a process that has it loaded.

As a script it is that process: a line of JSON in is a Job, a line of JSON out its Outcome.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

READS, CHANGES = 1, 2
KILL = 0
_SECONDS = 20  # after these a command counts as one that hangs
_SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True, slots=True)
class Job:
    """A command, and the call under `folder` that fails with `error`: the first is 1, and with 0 none does."""

    arguments: list[str]
    folder: str
    at: int = 0
    error: int = KILL
    kinds: int = READS


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended; `calls` were seen and `struck` is the one that failed."""

    code: int
    output: str
    talk: str
    calls: int
    struck: str


def compiler() -> str | None:
    return shutil.which("cc") if sys.platform.startswith("linux") else None


class Injector:
    """Runs moecli, with every module it needs already imported."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, job: Job) -> Outcome:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


@contextmanager
def injector(environment: Mapping[str, str]) -> Iterator[Injector]:
    """Compile, start, and end with the block."""
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "faults.so"
        subprocess.run([compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
        with subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults", str(library)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            env={**environment, "LD_PRELOAD": str(library)}, cwd=Path(__file__).parents[2],
        ) as process:  # fmt: skip
            yield Injector(process)
            assert process.stdin
            process.stdin.close()


def _serve(library: ctypes.CDLL) -> None:
    import moecli.cli.app
    import moecli.engine.chat
    import moecli.engine.loaded
    import moecli.library.listing
    import moecli.library.removal
    import moecli.library.resolve
    import moecli.library.verification
    import moecli.output.listing
    import moecli.output.verify
    import moecli.store.write  # noqa: F401

    library.fault_last.restype = ctypes.c_char_p
    library.fault_count.restype = ctypes.c_long
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    for line in jobs:
        job = Job(**json.loads(line))
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as talk:
            child = os.fork()
            if child == 0:
                _carry_out(job, library, output.fileno(), talk.fileno())
            _, status = os.waitpid(child, 0)
            output.seek(0), talk.seek(0)
            outcome = Outcome(
                os.waitstatus_to_exitcode(status), output.read().decode(), talk.read().decode(),
                library.fault_count(), library.fault_last().decode(),
            )  # fmt: skip
        print(json.dumps(asdict(outcome)), flush=True)


def _carry_out(job: Job, library: ctypes.CDLL, output: int, talk: int) -> None:
    from moecli.cli.app import dispatch

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1), os.dup2(talk, 2)
    signal.alarm(_SECONDS)
    code = 99
    try:
        sys.argv = ["moecli", *job.arguments]
        sys.stdin = os.fdopen(0, encoding="utf-8")
        library.fault_arm(job.folder.encode(), job.kinds, ctypes.c_long(job.at), job.error)
        dispatch()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(ctypes.CDLL(sys.argv[1]))

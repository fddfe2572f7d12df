"""One process's share of the cases of a target, in a home of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.judge import Verdict, judge


def work(name: str, seed: str, first: int, end: int, results: Connection) -> None:
    """Send a verdict for each case."""
    run = prepared(name)
    for number in range(first, end):
        results.send(run(seed, number))
    results.close()


def prepared(name: str) -> Callable[[str, int], Verdict]:
    """What judges a case of a target by its number; settings are made before what reads them is imported."""
    folder = Path(tempfile.mkdtemp(prefix="moecli-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for variable in [name for name in os.environ if name.startswith(("MOECLI_", "HF_", "XDG_"))]:
        del os.environ[variable]
    os.environ |= {
        "HOME": str(folder), "MOECLI_HOME": str(folder / "moecli"), "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "OMP_NUM_THREADS": "1",
        "MOECLI_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    from tests.fuzz.mutations import Mutator
    from tests.fuzz.targets import TARGETS

    case = TARGETS[name][0](folder)
    judge(["--version"])  # what is imported once is no growth of the first case

    def run(seed: str, number: int) -> Verdict:
        return judge(case(Mutator(f"{seed}/{name}/{number}")))

    return run

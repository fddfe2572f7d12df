"""`python -m tests.fuzz --cases 200000`: every target, in processes of their own; a finding tells how to repeat it."""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.pool
import sys
from dataclasses import dataclass, field

from tests.fuzz.judge import Verdict
from tests.fuzz.worker import prepared, work

_PER_PROCESS = 5000  # then a new one, so that what leaks stays bounded
_SILENT = 60.0  # seconds without a verdict: the process is stuck where no signal reaches it


@dataclass
class Tally:
    """What became of a target's cases."""

    answered: int = 0
    refused: int = 0
    slowest: float = 0
    growth: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, how: str) -> None:
        self.answered += verdict.code == 0
        self.refused += verdict.code not in (0, None)
        self.slowest, self.growth = max(self.slowest, verdict.seconds), max(self.growth, verdict.growth)
        if verdict.faults:
            self.findings.append(f"{how}\n" + "\n".join(verdict.faults))


def main() -> int:
    """Exit code 1 if anything was found."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="of all targets together")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--first", type=int, default=0, help="of each target, to go on from there")
    parser.add_argument("--case", type=int, help="this one alone, with what it shows")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--findings", type=int, default=20, help="a target stops after so many")
    wanted = parser.parse_args()
    if wanted.case is not None:
        return _repeat(wanted.target[0], wanted.seed, wanted.case)
    shares = {name: share for name, (_, share) in TARGETS.items() if name in (wanted.target or TARGETS)}
    work = [(name, wanted.first, round(wanted.cases * share / sum(shares.values()))) for name, share in shares.items()]
    found = 0
    print(f"| target | cases | answered | refused | slowest | most memory | findings |\n|---|{'--:|' * 6}")
    with multiprocessing.pool.ThreadPool(wanted.jobs) as pool:
        for name, count, tally in pool.imap(lambda job: _watch(*job, wanted.seed, wanted.findings), work):
            found += len(tally.findings)
            print(
                f"| {name} | {count:,} | {tally.answered:,} | {tally.refused:,} | {tally.slowest:.2f} s "
                f"| {tally.growth >> 20} MiB | {len(tally.findings)} |",
                flush=True,
            )
            for finding in tally.findings:
                print(finding, file=sys.stderr)
    return 1 if found else 0


def _watch(name: str, first: int, count: int, seed: str, most: int) -> tuple[str, int, Tally]:
    """The cases of a target up to `count`; a process that dies or hangs costs the case it was at."""
    tally, number = Tally(), first
    spawn = multiprocessing.get_context("spawn")
    while number < count and len(tally.findings) < most:
        ours, theirs = spawn.Pipe(duplex=False)
        end = min(count, number + _PER_PROCESS)
        process = spawn.Process(target=work, args=(name, seed, number, end, theirs), daemon=True)
        process.start()
        theirs.close()
        while number < end and len(tally.findings) < most:
            how = f"python -m tests.fuzz --target {name} --seed {seed} --case {number}"
            try:
                if not ours.poll(_SILENT):
                    raise EOFError
                tally.add(ours.recv(), how)
            except EOFError:
                process.kill()
                process.join()
                tally.findings.append(f"{how}\nthe process hung or died ({process.exitcode})")
                number += 1
                break
            number += 1
        process.kill()
        process.join()
    return name, number - first, tally


def _repeat(name: str, seed: str, number: int) -> int:
    verdict = prepared(name)(seed, number)
    print(verdict.shown, f"exit code {verdict.code}, {verdict.seconds:.2f} s, {verdict.growth >> 20} MiB", sep="\n")
    print(*verdict.faults, sep="\n")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Mutation testing: small mistakes in a copy of the code, one at a time, each held against the tests of its room.

.ci/mutants.py ROOM... [--sample N] [--seed N] [--minutes N]        (`make mutants`; rooms: see ROOMS)

The mistakes are those of Cosmic Ray's operators, and calls left out. Cosmic Ray would start an interpreter with torch
for each, and mutate files in place; here a process that has the libraries loaded forks once for each, in a copy under
build/. What was found lies in build/mutants/ROOM.jsonl: another run goes on from there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso import parse
from parso.tree import NodeOrLeaf

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
COPY = BUILD / "copy"
PRELOADED = (
    "torch", "numpy", "safetensors.torch", "tokenizers", "huggingface_hub", "hypothesis.strategies", "jinja2", "psutil",
    "pytest", "transformers", "typer", "transformers.models.mixtral.modeling_mixtral",
)  # fmt: skip


FROZEN = "tests/test_layout_rules.py::test_data_is_frozen_and_has_slots"  # of every room
Span = tuple[tuple[int, int], tuple[int, int]]  # line and column, from and to


@dataclass(frozen=True)
class Room:
    """What is mutated, and the tests that are to notice: quick ones first."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    skipped: str = ""  # tests that take long and see no more than others


ROOMS = {
    "store": Room(
        ("store/checksums", "store/convert", "store/expert_record", "store/filesystem", "store/incremental",
         "store/jobs", "store/layout", "store/manifest", "store/packed", "store/remove", "store/source",
         "store/verify", "store/write"),
        ("tests/store/test_layout.py", "tests/store/test_records.py", "tests/store/test_source.py",
         "tests/store/test_writing.py", "tests/store/test_damage.py", "tests/store/test_pack_store.py",
         "tests/planning/test_memory.py::test_a_staging_buffer_holds_any_piece", "tests/library/test_stores.py",
         "tests/library/test_damaged.py", "tests/store/test_written_files.py",
         "tests/store/test_shards.py", "tests/store/test_interrupted.py",
         "tests/library/test_power_cuts.py::test_pack",
         "tests/library/test_power_cuts.py::test_rm_of_a_packed_model",
         "tests/library/test_power_cuts.py::test_pull_into_a_packed_model"),
    ),
    "journal": Room(
        ("store/journal",),
        ("tests/store/test_journal.py", "tests/library/test_stores.py", "tests/store/test_interrupted.py",
         "tests/library/test_power_cuts.py::test_pack"),
    ),
    "offloading": Room(
        ("experts/arena", "experts/copies", "experts/disk", "experts/gpu_offloaded", "experts/offloaded",
         "experts/pieces", "experts/policies", "experts/rates", "experts/readers", "experts/resident",
         "experts/slot_map", "experts/store"),
        ("tests/experts/test_copies.py", "tests/experts/test_rates.py", "tests/experts/test_arena.py",
         "tests/experts/test_pieces.py", "tests/experts/test_readers.py", "tests/experts/test_disk.py",
         "tests/experts/test_device_traffic.py", "tests/experts/test_passes.py", "tests/experts/test_resident.py",
         "tests/experts/test_failed_reads.py", "tests/engine/test_experts.py",
         "tests/experts/test_policies.py", "tests/experts/test_gpu_offloaded.py", "tests/experts/test_offloaded.py",
         "tests/experts/test_device_tables.py", "tests/experts/test_far_device.py"),
        skipped="int8 or nf4 or fp16 or qwen2 or each_trace",
    ),
    "planning": Room(
        ("planning/estimate", "planning/gpus", "planning/memory", "planning/placement", "planning/rates",
         "planning/speed", "planning/terms"),
        ("tests/planning/test_gpus.py", "tests/planning/test_terms.py", "tests/planning/test_estimate.py",
         "tests/planning/test_placement.py", "tests/planning/test_memory.py", "tests/planning/test_speed.py",
         "tests/planning/test_rates.py", "tests/planning/test_choice.py", "tests/planning/test_measured.py",
         "tests/engine/test_loaded.py"),
    ),
    "cgroups": Room(
        ("planning/cgroups", "planning/machine"),
        ("tests/planning/test_machine.py", "tests/planning/test_cgroups.py"),
    ),
    "transfer": Room(
        ("hub/cache", "hub/client", "hub/download", "hub/headers", "hub/manifest", "hub/retry", "hub/transfer"),
        ("tests/hub/test_retry.py", "tests/hub/test_answers.py", "tests/hub/test_cache.py",
         "tests/hub/test_remote_headers.py", "tests/hub/test_manifests.py", "tests/hub/test_placing.py",
         "tests/hub/test_transfers.py", "tests/hub/test_download.py",
         "tests/cli/test_inspect_hub.py", "tests/library/test_resolve.py",
         "tests/hub/test_pull_offline.py", "tests/library/test_power_cuts.py::test_pull",
         "tests/hub/test_environment.py", "tests/hub/test_supplement.py", "tests/hub/test_pickled_headers.py",
         "tests/hub/test_hostile.py"),
        skipped="any_answer_ends and inspect",
    ),
    "generation": Room(
        ("engine/answer", "engine/chat", "engine/generate", "engine/limits", "engine/sampling"),
        ("tests/engine/test_answer.py", "tests/engine/test_steps.py", "tests/engine/test_chat.py",
         "tests/engine/test_limits.py", "tests/engine/test_loaded.py", "tests/engine/test_generate.py",
         "tests/engine/test_sampling.py", "tests/engine/test_finite.py", "tests/engine/test_drafts.py",
         "tests/engine/test_score.py"),
    ),
}  # fmt: skip


class LeaveOutCall(Operator):
    """A call whose value nobody uses becomes `pass`: what is not synced, not closed, not added."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[Span]:
        if node.type == "simple_stmt" and node.children[0].type in ("atom_expr", "power"):
            yield (node.children[0].start_pos, node.children[0].end_pos)

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        indentation = node.get_first_leaf().prefix
        node.children[0] = parse("pass").children[0]
        node.children[0].prefix = indentation
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


@dataclass(frozen=True)
class Mutant:
    """One mistake."""

    module: str
    line: int
    operator: str
    occurrence: int

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}:{self.operator.partition('/')[2] or self.operator}:{self.occurrence}"


def operators() -> dict[str, Operator]:
    """Those that need no arguments."""
    found = {name: get_operator(name) for name in operator_names()}
    return {name: each() for name, each in found.items() if not each.arguments()} | {"LeaveOutCall": LeaveOutCall()}


def silent(text: str) -> list[Span]:
    """Where a change has no effect: annotations and imports for them, lines of the log, what other systems run."""
    found: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif _is_for_types(node) or _is_log(node) or _is_for_others(node):
            found.append(node)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found if n is not None]


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_for_others(node: ast.AST) -> bool:
    """The question which system this is, and what runs on others."""
    if isinstance(node, ast.If | ast.IfExp) and "sys.platform" in ast.unparse(node.test):
        return isinstance(node, ast.IfExp) or "win32" in ast.unparse(node.test)
    return isinstance(node, ast.Compare) and "sys.platform" in ast.unparse(node)


def _is_log(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_LOG.")


def mutants(module: str, chance: random.Random) -> Iterator[Mutant]:
    """One of each place and kind: a `+` could become eleven others, which says no more."""
    text = (ROOT / "moecli" / f"{module}.py").read_text()
    unseen = silent(text)
    tree = get_ast(text)
    places: dict[tuple[object, str], list[Mutant]] = {}
    for name, operator in operators().items():
        found = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for number, (start, end) in enumerate(found):
            if not any(first <= start and end <= last for first, last in unseen):
                kind = name.partition("/")[2].partition("_")[0]
                places.setdefault((start, kind), []).append(Mutant(module, start[0], name, number))
    for _, alike in sorted(places.items(), key=str):
        yield chance.choice(alike)


def prepare() -> None:
    """A copy to make mistakes in."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in ("moecli", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "setup.py", "CHANGELOG.md"):
        shutil.copy(ROOT / name, COPY)


def nearest_first(tests: tuple[str, ...], module: str) -> list[str]:
    """Tests in the order in which they are likely to notice soon: first quick ones of files that import the module."""
    room, _, name = module.rpartition("/")
    imports = re.compile(rf"moecli\.{room.replace('/', '.')}(?:\.| import (?:\w+, )*){name}\b")

    def is_far(test: str) -> bool:
        text = (COPY / test).read_text() if (COPY / test).is_file() else ""
        return "pytestmark = pytest.mark.slow" in text or not imports.search(text)

    return sorted(tests, key=is_far)


def run(tests: Sequence[str], skipped: str, seconds: float, keep_bytecode: bool = False) -> tuple[str, float, str]:
    """Tests in a process of their own: "passed", "failed" or "timeout", seconds, and the last lines."""
    log = BUILD / "log"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(COPY)
        sys.path.insert(0, str(COPY))
        os.environ["PYTHONPATH"] = str(COPY)
        if not keep_bytecode:
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        import pytest

        quietly = ["-n0", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
        left_out = ["-k", f"not ({skipped})"] if skipped else []
        os._exit(int(pytest.main([*quietly, *left_out, *tests, FROZEN])))
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - began > seconds:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", time.monotonic() - began, ""
        time.sleep(0.02)
    spent = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started
    lines = log.read_text(errors="replace").splitlines()
    passed = bool(lines) and " passed" in lines[-1] and "failed" not in lines[-1] and "error" not in lines[-1]
    noticed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "passed" if passed else "failed", spent, (noticed or lines or [""])[-1][:200]


def without_mutant(name: str, room: Room) -> float:
    """Seconds of the tests on the code as it is, where they must pass; measured once."""
    file = BUILD / f"{name}.seconds"
    if not file.exists():
        outcome, spent, last = run(room.tests, room.skipped, 1200, keep_bytecode=True)
        if outcome != "passed":
            sys.exit(f"{name}: {outcome} without a mutant: {last}")
        file.write_text(f"{spent:.0f}")
        print(f"{name}: {spent:.0f} s without a mutant", flush=True)
    return float(file.read_text())


def try_mutant(mutant: Mutant, room: Room, seconds: float) -> dict[str, object]:
    """Make the mistake in the copy, run the tests, and put it right again."""
    path = COPY / "moecli" / f"{mutant.module}.py"
    text = path.read_text()
    changed = mutate_code(text, operators()[mutant.operator], mutant.occurrence)
    try:
        compile(changed, path, "exec")
    except SyntaxError as error:
        return {"mutant": mutant.name, "outcome": "no program", "seconds": 0, "diff": [], "by": str(error)}
    for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        cached.unlink()
    path.write_text(changed)
    try:
        outcome, spent, last = run(nearest_first(room.tests, mutant.module), room.skipped, seconds)
    finally:
        path.write_text(text)
    diff = list(difflib.unified_diff(text.splitlines(), changed.splitlines(), lineterm="", n=0))[3:]
    return {"mutant": mutant.name, "outcome": outcome, "seconds": round(spent, 1), "diff": diff, "by": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each room, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no other mutant after so many")
    parser.add_argument("--again", action="store_true", help="try once more what survived")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    BUILD.mkdir(parents=True, exist_ok=True)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job would ignore it, and so the tests
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)
    prepare()
    for name in options.rooms or ROOMS:
        room, file = ROOMS[name], BUILD / f"{name}.jsonl"
        chance = random.Random(options.seed)
        known = [mutant for module in room.modules for mutant in mutants(module, chance)]
        chosen = chance.sample(known, min(options.sample, len(known)))
        lines = file.read_text().splitlines() if file.exists() else []
        found = {each["mutant"]: each for each in map(json.loads, lines)}
        if options.again:
            found = {mutant: each for mutant, each in found.items() if each["outcome"] != "passed"}
        todo = [mutant for mutant in chosen if mutant.name not in found]
        if todo and time.monotonic() < until:
            spent = without_mutant(name, room)
            for mutant in todo:
                if time.monotonic() > until:
                    break
                result = try_mutant(mutant, room, 60 + 3 * spent)
                found[mutant.name] = result
                with file.open("a") as out:
                    out.write(json.dumps(result) + "\n")
                if result["outcome"] == "passed":
                    print("survived", mutant.name, *result["diff"], sep="\n    ", flush=True)
        tried = [found[mutant.name] for mutant in chosen if mutant.name in found]
        tried = [each for each in tried if each["outcome"] != "no program"]
        caught = sum(each["outcome"] != "passed" for each in tried)
        share = f"{100 * caught / max(1, len(tried)):.0f} %"
        print(f"{name}: {caught} of {len(tried)} caught, {share}; {len(chosen)} of {len(known)} sampled", flush=True)


if __name__ == "__main__":
    main()

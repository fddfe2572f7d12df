"""What README.md shows of the program, made by running it; cog calls these functions."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import cog

from moecli import settings
from moecli.model import catalog, families
from moecli.model.spec import lacks


def shell(*commands: str, since: str | None = None, until: str | None = None) -> None:
    """Run moecli commands and show them with their output, as on a terminal of 80 columns, from one line up to another.

    The lines are named by their beginnings.
    """
    lines = []
    with tempfile.TemporaryDirectory() as home:
        homes = dict.fromkeys(("HOME", "HF_HOME", "MOECLI_HOME"), home)
        environment = os.environ | homes | {"COLUMNS": "80", "NO_COLOR": "1"}
        for command in commands:
            program, *arguments = shlex.split(command)
            assert program == "moecli"
            result = subprocess.run(
                [sys.executable, "-m", "moecli", *arguments],
                env=environment, capture_output=True, encoding="utf-8", check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            shown = f"\n{result.stdout}"
            if since:
                _, begin, after = shown.partition(f"\n{since}")
                assert begin, f"{command} prints no line that begins with '{since}'"
                shown = begin + after
            if until:
                shown, end, _ = shown.partition(f"\n{until}")
                assert end, f"{command} prints no line that begins with '{until}'"
            shown = shown[1:]
            lines += [f"$ {command}", shown.replace(home, "~").rstrip("\n"), ""]
    cog.outl("```console\n" + "\n".join(lines).rstrip("\n") + "\n```")


def picture(file: str, text: str, command: str) -> None:
    """A picture that a command draws into a file of the repository; an error where a check finds another one there."""
    path, kept = Path(file), Path(file).read_bytes() if Path(file).exists() else b""
    program, *arguments = shlex.split(command)
    assert program == "moecli"
    subprocess.run([sys.executable, "-m", "moecli", *arguments], check=True, stderr=subprocess.DEVNULL)
    if path.read_bytes() != kept and "--check" in sys.argv:
        path.write_bytes(kept)
        raise SystemExit(f"{file} is no longer what `{command}` draws: make docs")
    cog.outl(f"![{text}]({file})\n\n`{command}`")


def models() -> None:
    """Which families run, and the names that mean them; then those that are facts only."""
    runs: dict[str, list[str]] = {}
    facts: list[str] = []
    for entry in catalog.known():
        spec = families.read_spec(entry.config())
        if lacks(spec, spec.quantization):
            facts.append(entry.alias)
        else:
            runs.setdefault(spec.family, []).append(entry.alias)
    cog.outl("| family | aliases that run, once their weights are here |\n|---|---|")
    for family, aliases in runs.items():
        cog.outl(f"| {family} | {', '.join(f'`{alias}`' for alias in aliases)} |")
    cog.outl(f"\nFacts only (`inspect`, `memory`): {', '.join(f'`{alias}`' for alias in facts)}.")


def variables() -> None:
    """Every environment variable."""
    cog.outl("| variable | meaning |\n|---|---|")
    for variable in settings.VARIABLES:
        cog.outl(f"| `{variable.name}` | {variable.meaning} |")

"""Where figures come from: all that is needed to make them again, as names and texts that every export carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from moecli import __version__
from moecli.routing.permutation import SEED
from moecli.routing.prompts import Prompt
from moecli.routing.trace import RoutingTrace
from moecli.text.incoming import without_halves

RECORDED = "command", "moecli", "seed", "prompts", "prompts_sha256", "chat_template"


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of the prompts: of each a line of JSON, [domain, text], UTF-8; a conversation has [role, text] for each
    turn instead of its text."""
    whole = ([each.domain, [[turn.role, turn.content] for turn in each.turns] or each.text] for each in prompts)
    lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in whole)
    return hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()


def recorded(command: str, seed: int, name: str, prompts: Sequence[Prompt], raw: bool) -> dict[str, str]:
    """What a trace keeps of its making. `name`: of the prompt set, a file or what it is."""
    return {
        "command": without_halves(command),
        "moecli": __version__,
        "seed": str(seed),
        "prompts": without_halves(name),
        "prompts_sha256": digest(prompts),
        "chat_template": "no" if raw else "as the model's",
    }


def of_analysis(command: str, trace: RoutingTrace) -> dict[str, str]:
    """The program and command that made the figures, then the trace and what it keeps of its own making."""
    about = {"model": trace.model, "revision": trace.revision, "dtype": trace.dtype}
    made = {"command": command, "moecli": __version__, "permutation_seed": str(SEED)}
    kept: Mapping[str, str] = trace.provenance
    other = {f"trace_{key}" if key in made else key: kept[key] for key in RECORDED if key in kept}
    if other.get("trace_command") == command:
        other = {key: value for key, value in other.items() if not key.startswith("trace_")}
    found = {**made, **{key: value for key, value in about.items() if value}, **other}
    return {key: without_halves(value) for key, value in found.items()}

"""Render one chat template in a process of its own, which ends itself when a limit is reached.

`moecli.text.chat` runs this file as a script: `python -I -S template_worker.py FOLDER...`, where the folders
hold jinja2 and markupsafe. One JSON document a line. The first line of stdin is {source, variables}, every
other one is {messages, add_generation_prompt, ...}; every answer is {ok: text}, {raised: reason}, {failed: reason}
or {limit: what}; the text after the first line is a list of the names that the template reads. A limit that no Python
code can notice (time inside one C call, memory the system refuses) ends the process, which the parent sees as the end
of stdout.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path += sys.argv[1:]

import jinja2
from jinja2 import meta
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

COMPILE_SECONDS = 1.0
RENDER_SECONDS = 0.1
MOST_MEMORY = 512 * 2**20
MOST_OUTPUT = 2**20
_LONGEST_REASON = 300
_WALL_FACTOR = 50 if sys.platform != "win32" else 1


class TemplateRaised(jinja2.TemplateError):
    """The template itself called `raise_exception`."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which gives an empty value for a forbidden attribute, made to fail instead."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(f"'{attribute}' of a {type(obj).__name__} is forbidden")


class Generation(Extension):
    """Accept `{% generation %} ... {% endgeneration %}`: marks for training, printed as they stand."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that start with an underscore: they lead to interpreter internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold '{name}'")
        super().__setitem__(name, value)


class Dict:
    """`dict` for templates: what the type builds, without the type."""

    def __call__(self, *pairs: Any, **names: Any) -> dict[Any, Any]:
        return dict(*pairs, **names)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def compile_template(source: str) -> jinja2.Template:
    """The template in an environment with the globals and filters that `transformers` gives to templates."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda pattern: datetime.now().strftime(pattern),
        namespace=make_namespace,
        dict=Dict(),
    )
    return environment.from_string(source)


def make_namespace(*pairs: Any, **names: Any) -> Namespace:
    space = Namespace()
    for name, value in dict(*pairs, **names).items():
        space[name] = value
    return space


def raise_exception(reason: object) -> NoReturn:
    raise TemplateRaised(str(reason))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML; a prompt is not HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> dict[str, str]:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(**variables):
        size += len(piece.encode("utf-8", "surrogatepass"))
        if size > MOST_OUTPUT:
            return {"limit": "output"}
        pieces.append(piece)
    return {"ok": "".join(pieces)}


def answer(job: Callable[[], dict[str, str]], seconds: float) -> dict[str, str]:
    """What `job` returns, or why it failed. A job that takes longer than `seconds` ends the process."""
    set_deadline(seconds)
    try:
        return job()
    except MemoryError:
        return {"limit": "memory"}
    except TemplateRaised as problem:
        return {"raised": readable(problem)}
    except Exception as problem:  # a template may raise whatever the functions it calls can raise
        return {"failed": readable(problem)}
    finally:
        set_deadline(None)


def readable(problem: Exception) -> str:
    """One line that a terminal cannot take for a command."""
    try:
        reason = str(problem)[: 2 * _LONGEST_REASON]
    except Exception:  # the text of a hostile exception is computed too
        reason = ""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in reason).split())
    line = line or type(problem).__name__
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "..."


def set_deadline(seconds: float | None) -> None:
    """End this process after `seconds` of CPU time, or lift the deadline.

    The kernel's timer, left at its default action, also ends a single C call (`'a' * 10**10`) that no Python
    code can interrupt, and does not count the time another process had the core. Behind it, and alone on
    Windows, stands faulthandler's watchdog thread, which needs no interpreter lock but counts wall time.
    """
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds or 0)
    if seconds is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(seconds * _WALL_FACTOR, exit=True)


def limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    for kind, most in ((resource.RLIMIT_AS, MOST_MEMORY), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS refuses; the deadline bounds what can be touched in the time
            continue


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends an answer, not the conversation
    limit_memory()
    write({"ok": "ready"})
    opening = json.loads(sys.stdin.buffer.readline())
    compiled: list[jinja2.Template] = []

    def compile_source() -> dict[str, str]:
        template = compile_template(opening["source"])
        compiled.append(template)
        return {"ok": json.dumps(sorted(meta.find_undeclared_variables(template.environment.parse(opening["source"]))))}

    write(answer(compile_source, COMPILE_SECONDS))
    for line in sys.stdin.buffer:
        variables = {"tools": None, "documents": None} | opening["variables"] | json.loads(line)
        write(answer(partial(render, compiled[0], variables), RENDER_SECONDS))


def write(reply: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode("ascii") + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

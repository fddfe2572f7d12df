"""Chat messages to prompt text, through a model's own template, without trusting that template.

A template is a program from the internet. Inside one process Python cannot stop `'a' * 10**10`, a filter
with a huge argument, or a nest of loops, and a list of forbidden operations is never complete; so it runs in
a small worker process (`template_worker.py`) that the kernel ends when it uses more than 100 ms or 512 MiB.
The worker stays for later turns: the first rendering costs its start, about 0.15 s, a further one 0.3 ms.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moecli.errors import TextError

MOST_SOURCE = 2**20
_MOST_REPLY = 16 * 2**20  # 1 MiB of text, each character escaped in JSON
_HINT = "--raw sends the prompt without the template"
_LIMITS = {"memory": "needs too much memory", "output": "writes more than 1 MiB of text"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (`system`, `user`, `assistant`, `tool`), what, and what else templates read of it."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)  # tool_calls, reasoning_content, name, ...


class TemplateRefusal(TextError):
    """The template called `raise_exception`: it does not take this conversation."""


class ChatTemplate:
    """A model's Jinja template and the special tokens it may name (`bos_token`, `eos_token`, ...)."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self.variables = dict(variables)
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        given: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text, with what else is `given` to the template by name: options, or `tools`.

        A template that raises on a system message is asked again with it folded away.
        """
        try:
            return self._render(messages, add_generation_prompt, given or {})
        except TemplateRefusal:
            folded = fold_system(messages)
            if folded == list(messages):
                raise
            return self._render(folded, add_generation_prompt, given or {})

    @property
    def names(self) -> frozenset[str]:
        """What the template reads and does not set itself, `messages` and special tokens among it."""
        with self._lock:
            return self._started().names

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, given: Mapping[str, Any]) -> str:
        turns = [{"role": each.role, "content": each.content, **each.more} for each in messages]
        if not turns:
            raise TextError("a chat needs at least one message")
        request = {**given, "messages": turns, "add_generation_prompt": add_generation_prompt}
        with self._lock:
            worker = self._started()
            try:
                reply = worker.ask(request)
            except BaseException:  # an interrupt included: the answer still to come would be the next one's
                self.close()
                raise
        return _text(reply)

    def _started(self) -> _Worker:
        if len(self.source) > MOST_SOURCE:
            raise TextError(f"the chat template is longer than {MOST_SOURCE} characters", _HINT)
        if self._worker is None or self._worker.gone():
            self._worker = _Worker.start(self.source, self.variables)
        return self._worker

    def close(self) -> None:
        """End the worker; the next `render` starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template without a system role: its text opens the first user turn."""
    texts = [message.content for message in messages if message.role == "system" and message.content]
    rest = [message for message in messages if message.role != "system"]
    if not texts:
        return rest
    system = "\n\n".join(texts)
    for place, message in enumerate(rest):
        if message.role == "user":
            rest[place] = replace(message, content=f"{system}\n\n{message.content}")
            return rest
    return [Message("user", system), *rest]


class _Worker:
    """The process beside this one, and the line protocol spoken with it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.names: frozenset[str] = frozenset()  # that the template reads
        self.stop = weakref.finalize(self, _end, process)

    @classmethod
    def start(cls, source: str, variables: Mapping[str, str]) -> _Worker:
        """A worker that has compiled `source`."""
        # -I -S: nothing of the user's environment or site hooks runs there; the folders are named instead.
        script = Path(__file__).with_name("template_worker.py")
        command = [sys.executable, "-I", "-S", str(script), *_package_folders("jinja2", "markupsafe")]
        pipe, void = subprocess.PIPE, subprocess.DEVNULL
        try:
            worker = cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=void))
        except OSError as problem:
            raise TextError(f"cannot start {sys.executable} for the chat template: {problem}", _HINT) from None
        try:
            if worker._read() is None:
                raise TextError(f"jinja2 does not start in {sys.executable}", f"is it installed? {_HINT}")
            compiled = _text(worker.ask({"source": source, "variables": dict(variables)}, "1 s to compile"))
            worker.names = frozenset(json.loads(compiled))
        except BaseException:
            worker.stop()
            raise
        return worker

    def ask(self, request: dict[str, Any], budget: str = "100 ms") -> dict[str, str]:
        """The worker's answer; one that ended itself reached a limit."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:  # it is gone; what it left on stdout says no more
            pass
        reply = self._read()
        if reply is None:
            raise TextError(f"the chat template {self._ending(budget)}", _HINT)
        return reply

    def gone(self) -> bool:
        return self._process.poll() is not None

    def _ending(self, budget: str) -> str:
        """Why the process is gone: its deadline (the kernel's timer or the watchdog), or anything else."""
        code = self._process.wait()
        deadline = {1, -signal.SIGPROF} if sys.platform != "win32" else {1}
        return f"takes more than {budget}" if code in deadline else f"crashes Python (exit code {code})"

    def _read(self) -> dict[str, str] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline(_MOST_REPLY)
        if not line.endswith(b"\n"):
            return None
        reply: dict[str, str] = json.loads(line)
        return reply


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # unsent bytes to a process that is gone
                continue
    process.wait()


def _package_folders(*names: str) -> list[str]:
    """The folders that hold these packages, found without importing them."""
    specs = [importlib.util.find_spec(name) for name in names]
    return [str(Path(spec.origin).parent.parent) for spec in specs if spec is not None and spec.origin]


def _text(reply: dict[str, str]) -> str:
    """The rendered text in an answer, or its failure as an error."""
    ((outcome, text),) = reply.items()
    if outcome == "ok":
        return text
    if outcome == "raised":
        raise TemplateRefusal(f"the chat template refuses this conversation: {text}", _HINT)
    if outcome == "limit":
        raise TextError(f"the chat template {_LIMITS[text]}", _HINT)
    raise TextError(f"the chat template fails: {text}", _HINT)

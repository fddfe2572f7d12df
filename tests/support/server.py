"""A `moecli serve` as a process of its own on 127.0.0.1, and what it should say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2

import moecli
from moecli.engine.answer import Answer
from moecli.engine.chat import ChatSession, GenerationConfig, plan_for
from moecli.engine.loaded import LoadedModel, LoadOptions, open_for_run
from moecli.engine.sampling import SamplingOptions
from moecli.library.resolve import Kind, ModelRef
from moecli.store.progress import silent
from tests.support import checkpoints, toy_tokenizers
from tests.support.stores import packed

TINY = Path(moecli.__file__).parent / "tiny"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    url: str
    process: subprocess.Popen[str]

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=headers, timeout=60)

    def metric(self, name: str) -> int:
        """A number of /metrics."""
        lines = dict(each.rsplit(" ", 1) for each in self.get("/metrics").text.splitlines() if each[0] != "#")
        return int(lines[f"moecli_{name}"])


@contextmanager
def serving(home: Path, *options: str, **more: str) -> Iterator[Server]:
    """A server whose models lie in `home`; it is ended at the end."""
    environment = os.environ | {
        "HOME": str(home), "HF_HOME": str(home / "hf"), "MOECLI_HOME": str(home), "MOECLI_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-c", "from moecli.cli.app import main; main()", "serve", "--port", "0", *options]
    with (home / "stderr").open("w") as talk:
        process = subprocess.Popen(
            command, env=environment | more, stdout=subprocess.PIPE, stderr=talk, encoding="utf-8"
        )  # fmt: skip
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), (home / "stderr").read_text()
        yield Server(url, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def add_dbrx(home: Path) -> None:
    """Lay a packed model of random numbers with a chat template there, by the name of dbrx."""
    source = home / "source"
    tokenizer = toy_tokenizers.byte_level()
    checkpoints.write(checkpoints.make("dbrx", vocab_size=tokenizer.get_vocab_size(), max_seq_len=2048), source)
    tokenizer.save(str(source / "tokenizer.json"))
    told = {"chat_template": TEMPLATE, "eos_token": "<|eos|>"}
    toy_tokenizers.write_json(source / "tokenizer_config.json", told)
    (home / "models").mkdir()
    packed(source, home / "models" / "dbrx", "q8")


@cache
def _loaded(folder: Path) -> LoadedModel:
    opened = open_for_run(ModelRef("tiny", "tiny", Kind.FOLDER, folder), LoadOptions(threads=1, context=1024))
    return opened.load(opened.plan(1024), silent)


def said(prompt: str, max_tokens: int, seed: int = 0, folder: Path = TINY, **sampling: Any) -> str:
    """What tiny, or its store in `folder`, answers where nobody else is served: as `moecli run` does."""
    loaded = _loaded(folder)
    config = GenerationConfig(SamplingOptions(**sampling).resolve(loaded.opened.defaults), seed, max_tokens)
    plan_for(loaded.opened, config, prompt)
    return "".join(ChatSession(loaded, config).ask(prompt, Answer()))

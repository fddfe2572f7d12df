"""Replicas of public repositories go through every command; the table in docs/weights.md says how each one ends."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hub_server, vocabularies
from tests.support.in_process import Ended, moecli
from tests.support.replicas import REPLICAS, Replica
from tests.support.toy_tokenizers import byte_level, metaspace

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"
COLUMNS = (
    "repository", "weights", "tokenizer", "inspect, memory", "pull, verify", "run, --routing", "pack, verify, run",
    "pull --dtype q4, verify, run", "pull says",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
TABLE = re.compile(r"(?<=<!-- replicas -->\n).*?(?=<!-- end -->)", re.DOTALL)
RUN = ("The sea", "-n", "4", "--temperature", "0", "--json")
ROUTING = ("--routing", "--prompt", "The sea", "--max-tokens", "2", "--json")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A Hub that holds the tokenizers which others are given."""
    with hub_server.serve_library(monkeypatch) as running:
        running.put("Xenova/grok-1-tokenizer/tokenizer.json", metaspace().to_str().encode())
        running.put("databricks/dbrx-instruct/tokenizer.json", byte_level().to_str().encode())
        yield running


class Trip:
    """One replica on its way through the commands."""

    def __init__(self, replica: Replica, folder: Path) -> None:
        self.repo, self._folder = replica.repo, folder
        self._given = () if replica.given is None else ("--tokenizer", folder / replica.given)
        if replica.given is not None and "/" in replica.given:
            self._given = ("--tokenizer", replica.given)
        self.says = ""  # what pull says, where it asks or refuses

    def cells(self) -> list[str]:
        """How each group of commands ends, in the order of the table, and what pull says."""
        repo, store, other, given = self.repo, self._folder / "packed", self._folder / "pulled", self._given
        found = [
            self._all(("inspect", repo), ("memory", repo)),
            self._pulled(),
            self._all(("run", repo, *RUN, *given), ("inspect", repo, *ROUTING, *given)),
            self._all(("pack", repo, "-o", store, "--quiet", *given), ("verify", store), ("run", store, *RUN)),
            self._all(
                ("pull", repo, "--dtype", "q4", "-o", other, "--quiet", "--yes", *given), ("verify", other),
                ("run", other, *RUN),
            ),
        ]  # fmt: skip
        return [*found, self.says.replace(repo, "it")]

    def _pulled(self) -> str:
        """Without a word, after a question, or not at all; nothing is fetched by a command that asks in vain."""
        plain = moecli("pull", self.repo, "--quiet")
        if plain.code == 2:
            assert "--yes" in plain.failure and not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))
            self.says = re.findall(r"note: (.*)", plain.err)[-1]
            assert self._all(("pull", self.repo, "--quiet", "--yes")) == "ok"
        elif plain.code:
            self.says = self._sentence(plain)
            return "no"
        assert self._all(("verify", self.repo)) == "ok"
        return "asks" if plain.code else "ok"

    def _all(self, *commands: tuple[str | Path, ...]) -> str:
        for command in commands:
            ended = moecli(*command)
            if ended.code:
                self._sentence(ended)
                return "no"
        return "ok"

    @staticmethod
    def _sentence(ended: Ended) -> str:
        """The one that a refusal consists of, beside a hint."""
        assert re.fullmatch(r"error: [^\n]+\nhint: [^\n]+\n", ended.failure) and "Traceback" not in ended.err, ended.err
        return ended.failure.splitlines()[0].removeprefix("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("replica", REPLICAS, ids=lambda replica: replica.repo)
def test_a_replica_ends_as_the_table_says(
    replica: Replica, hub: hub_server.Hub, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    replica.write(made)
    (tmp_path / "cl100k_base.tiktoken").write_bytes(vocabularies.written(vocabularies.small_ranks()))
    for path in made.rglob("*"):
        if path.is_file():
            hub.put(f"{replica.repo}/{path.relative_to(made).as_posix()}", path.read_bytes())
    row = "| " + " | ".join((f"`{replica.repo}`", replica.weights, replica.tokenizer, *Trip(replica, tmp_path).cells()))
    row += " |\n"
    assert not any(name.endswith(".py") for name in hub.sent_of), "no remote code is ever fetched"
    page = DOCS.read_text(encoding="utf-8")
    table = TABLE.findall(page)[0]
    if request.config.getoption("--write-replicas"):
        rows = {line.split("`")[1]: line for line in table.splitlines(keepends=True)[2:]} | {replica.repo: row}
        table = HEAD + "".join(rows[each.repo] for each in REPLICAS if each.repo in rows)
        DOCS.write_text(TABLE.sub(lambda _: table, page), encoding="utf-8")
    assert row in table, "pytest -n0 tests/cli/test_replicas.py --write-replicas writes it anew"


def test_the_table_has_every_replica_and_no_other() -> None:
    table = TABLE.findall(DOCS.read_text(encoding="utf-8"))[0]
    assert table.startswith(HEAD) and len(REPLICAS) >= 25
    assert [line.split("`")[1] for line in table.removeprefix(HEAD).splitlines()] == [each.repo for each in REPLICAS]

"""`run --prompts`: lines in, lines out, killed and gone on with; and what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from moecli.output.answer_lines import AnswerLines
from tests.support.in_process import moecli as inside
from tests.support.processes import wait_for

OPTIONS = ("--seed", "5", "--temperature", "0.8", "--quiet")
PROMPTS = [{"prompt": f"The sea {number}", "max_tokens": 2 + 30 * number, "id": number} for number in range(6)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in PROMPTS))
    return path


def test_a_batch_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(moecli, start, prompts):
    out = prompts.with_name("out.jsonl")
    command = ("run", "tiny", "--prompts", str(prompts), *OPTIONS)
    whole = moecli(*command)
    assert whole.returncode == 0 and whole.stderr == ""
    lines = [json.loads(line) for line in whole.stdout.splitlines()]
    assert [line["id"] for line in lines] == list(range(6)) and len({line["key"] for line in lines}) == 6
    process = start(*command, "-o", str(out))
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") > 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = out.read_bytes()
    assert 1 < there.count(b"\n") < 6 and whole.stdout.encode().startswith(there[: there.rindex(b"\n") + 1])
    with out.open("ab") as file:
        file.write(whole.stdout.encode()[file.tell() :][:30])  # a line that is cut
    again = moecli(*command[:-1], "-o", str(out))
    assert again.returncode == 0 and "answers are there already" in again.stderr
    assert out.read_text() == whole.stdout
    alone = json.loads(moecli("run", "tiny", "The sea 2", *OPTIONS[:-1], "-n", "62", "--json").stdout)
    assert (alone["token_ids"], alone["text"]) == (lines[2]["token_ids"], lines[2]["text"])


def test_lines_without_an_answer_are_named(prompts):
    with prompts.open("a") as file:
        file.write('no JSON\n{"prompt": "%s"}\n' % ("sea " * 2000))
    found = inside("run", "tiny", "--prompts", prompts, *OPTIONS, "-n", "2")
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert found.code == 1 and [line["line"] for line in lines] == list(range(1, 9))
    assert "not readable JSON" in lines[6]["error"] and "context 1024" in lines[7]["error"]
    assert all(line["text"] for line in lines[:6])
    assert found.failure.startswith("error: 2 of 8 prompts have no answer: line 7: it is not readable JSON")


def test_a_file_with_other_answers_is_left_alone_and_a_seed_counts_on(prompts):
    out = prompts.with_name("out.jsonl")
    command = ("run", "tiny", "--prompts", prompts, "-o", out, "--quiet", "--temperature", "1")
    prompts.write_text('"The sea"\n"She"\n')
    assert inside(*command, "-n", "3").code == 0
    content = out.read_text()
    first, second = (json.loads(line) for line in content.splitlines())
    assert first["seed"] == second["seed"]
    assert inside(*command, "-n", "3").code == 0 and out.read_text() == content  # nothing is left to do
    out.write_text(content.splitlines(keepends=True)[0])
    assert inside(*command, "-n", "3").code == 0 and out.read_text() == content
    refused = inside(*command, "-n", "4")
    assert refused.code == 1 and "its line 1 answers another prompt, or with other options" in refused.failure
    out.write_text("a diary\n")
    refused = inside(*command, "-n", "3")
    assert refused.code == 1 and "its line 1 is not readable JSON" in refused.failure and "hint: " in refused.failure
    assert out.read_text() == "a diary\n"


def test_the_bundled_tasks_are_judged():
    found = inside("run", "tiny", "--prompts", "builtin:tasks", "-n", "4", "--quiet")
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [line["id"] for line in lines] == ["words", "summary", "marathon", "apples"]
    assert not any(line["check"]["passed"] for line in lines) and all(line["check"]["found"] for line in lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["The sea"], "PROMPT does not go with --prompts"), (["--session", "x"], "--session does not go with"),
        (["--json"], "--json does not go with"), (["-f", "x"], "--file does not go with"),
    ],
)  # fmt: skip
def test_what_is_of_one_prompt_is_refused(options, said, prompts):
    found = inside("run", "tiny", *options, "--prompts", prompts)
    assert found.code == 2 and said in found.failure and "text" not in found.out
    assert inside("run", "tiny", "The sea", "-o", "x").code == 2


def test_answers_are_written_in_the_order_of_the_prompts(tmp_path):
    lines = AnswerLines(tmp_path / "out")
    for place in (2, 0, 3, 1):
        lines.put(place, {"line": place, "key": str(place)})
    assert [json.loads(line)["line"] for line in (tmp_path / "out").read_text().splitlines()] == [0, 1, 2, 3]
    AnswerLines(tmp_path / "out").check(["0", "1", "2", "3", "4"])

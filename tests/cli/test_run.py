"""`moecli run` through real processes: streams, exit codes, pipes, signals, JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

import moecli
from moecli.output import messages
from tests.support.waiting import readable

TINY = Path(moecli.__file__).parent / "tiny"
# Greedy text without a penalty goes in circles and never ends: longer than any test waits.
LONG = ("-n", "15000", "--ctx", "16000", "--temperature", "0", "--repeat-penalty", "1")
GREEDY = ("--temperature", "0", "-n", "16")
CONTRACT = {
    "schema_version", "model", "dtype", "device", "text", "token_ids", "prompt_tokens", "completion_tokens",
    "finish_reason", "prefill_s", "decode_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes",
    "drafted_tokens", "drafted_tokens_right",
    "planned_bytes", "expert_cache",
}  # fmt: skip


def test_json_is_valid_complete_and_the_same_twice(moecli):
    documents = []
    for _ in range(2):
        result = moecli("run", "tiny", "The sea", *GREEDY, "--json")
        assert result.returncode == 0, result.stderr
        documents.append(json.loads(result.stdout))
    first, second = documents
    assert first.keys() >= CONTRACT
    assert (first["text"], first["token_ids"]) == (second["text"], second["token_ids"])
    assert first["completion_tokens"] == len(first["token_ids"]) == 16
    assert first["finish_reason"] == "length"
    assert first["planned_bytes"].keys() == {"device", "ram", "disk"}
    assert first["expert_cache"].keys() >= {"hits", "misses", "bytes_read", "budget_bytes"}
    assert first["text"].strip()


def test_log_probabilities_are_those_of_the_model(moecli):
    """Of the tokens that were drawn, the filters and the penalty notwithstanding."""
    found = json.loads(moecli("run", "tiny", "The sea", "-n", "8", "--seed", "3", "--json", "--logprobs", "2").stdout)
    scores = found["logprobs"]
    assert [each["token_id"] for each in scores] == found["token_ids"]
    assert "".join(each["token"] for each in scores) == found["text"]
    for each in scores:
        assert len(each["top"]) == 2 and each["logprob"] <= each["top"][0]["logprob"] < 0
    assert moecli("run", "tiny", "The sea", "--logprobs", "2").returncode == 2
    likeliest = scores[0]["top"][0]
    labels = f"{likeliest['token'].strip()},ship"
    scored = json.loads(moecli("score", "tiny", "The sea", "--labels", labels, "--json").stdout)
    assert scored["prompt_tokens"] == found["prompt_tokens"] and [scored["best"], "ship"] == labels.split(",")
    assert scored["labels"][0]["logprob"] == likeliest["logprob"] > scored["labels"][1]["logprob"]


def test_stdout_is_the_text_alone(moecli):
    text = json.loads(moecli("run", "tiny", "The sea", *GREEDY, "--json").stdout)["text"]
    plain = moecli("run", "tiny", "The sea", *GREEDY)
    assert plain.stdout == (text if text.endswith("\n") else f"{text}\n")
    assert "tok/s" in plain.stderr
    quiet = moecli("run", "tiny", "The sea", *GREEDY, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (plain.stdout, "")


def test_the_same_seed_gives_the_same_text_and_another_seed_another(moecli):
    def text(seed: str) -> str:
        return json.loads(
            moecli("run", "tiny", "The sea", "-n", "24", "--seed", seed, "--temperature", "1", "--json").stdout
        )["text"]

    assert text("7") == text("7")
    assert len({text("7"), text("8"), text("9")}) > 1


def test_a_sampled_run_says_its_seed_and_can_be_repeated(moecli):
    first = json.loads(moecli("run", "tiny", "The sea", "-n", "12", "--json").stdout)
    again = json.loads(moecli("run", "tiny", "The sea", "-n", "12", "--json", "--seed", str(first["seed"])).stdout)
    assert first["text"] == again["text"]


def test_stdin_comes_before_the_argument(moecli):
    both = json.loads(moecli("run", "tiny", "continue", *GREEDY, "--json", input="some text\n").stdout)
    written = json.loads(moecli("run", "tiny", "some text\n\ncontinue", *GREEDY, "--json").stdout)
    assert both["text"] == written["text"]
    assert both["prompt_tokens"] == written["prompt_tokens"]
    alone = json.loads(moecli("run", "tiny", *GREEDY, "--json", input="some text\n").stdout)
    assert alone["prompt_tokens"] < both["prompt_tokens"]


def test_a_reader_that_leaves_ends_it_quietly(start):
    process = start("run", "tiny", "The sea", *LONG)
    assert process.stdout and process.stderr
    assert process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == 1
    assert "Traceback" not in errors and "BrokenPipe" not in errors


def test_text_arrives_while_it_is_generated(start):
    process = start("run", "tiny", "The sea", *LONG)
    assert process.stdout
    os.read(process.stdout.fileno(), 1)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_ctrl_c_keeps_the_text_and_exits_130(start):
    with start("run", "tiny", "The sea", *LONG) as process:
        assert process.stdout and process.stderr
        head = process.stdout.read(12)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert head and (head + out).endswith("\n")
    assert "Traceback" not in err and "tok/s" in err


@pytest.mark.parametrize("after", [0, 0.5])
def test_ctrl_c_with_json_prints_the_document_so_far(start, environment, after):
    """From the moment on that the prompt is read; the log tells when."""
    environment["MOECLI_LOG"] = "debug"
    with start("run", "tiny", "The sea", *LONG, "--json") as process:
        assert process.stdout and process.stderr
        while "moecli.engine.generate: a prompt of " not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    document = json.loads(out)
    assert document.keys() >= CONTRACT
    assert document["finish_reason"] == "interrupt"
    assert document["completion_tokens"] == len(document["token_ids"]) < 15000
    assert bool(document["text"]) == bool(document["token_ids"]) and bool(document["text"]) >= bool(after)


def test_stop_text_is_not_printed(moecli):
    text = json.loads(moecli("run", "tiny", "The sea", "--temperature", "0", "-n", "40", "--json").stdout)["text"]
    stop = re.findall(r"\w+", text)[3]
    stopped = json.loads(
        moecli("run", "tiny", "The sea", "--temperature", "0", "-n", "40", "--json", "--stop", stop).stdout
    )
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == text[: text.index(stop)]


def test_precision_is_as_asked(moecli):
    assert json.loads(moecli("run", "tiny", "a", *GREEDY, "--json").stdout)["dtype"] == "bf16"
    assert json.loads(moecli("run", "tiny", "a", *GREEDY, "--json", "--dtype", "fp32").stdout)["dtype"] == "fp32"


def test_the_context_bounds_the_answer(moecli):
    document = json.loads(moecli("run", "tiny", "The sea", "--ctx", "10", "-n", "400", "--json").stdout)
    assert document["prompt_tokens"] + document["completion_tokens"] <= 11
    long = moecli("run", "tiny", "The sea " * 50, "--ctx", "10")
    assert long.returncode == 1
    assert "tokens and the context 10" in long.stderr and "hint:" in long.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "mixtrl", "x"), 1, "mixtral"),
        (("run", "mixtral", "x"), 1, "moecli pull mixtral"),
        (("run", "tiny", "x", "--temperature", "-1"), 2, "-1"),
        (("run", "tiny", "x", "--top-p", "2"), 2, "2"),
        (("run", "tiny", "x", "--dtype", "q99"), 2, "q99"),
        (("run", "tiny", "x", "-n", "0"), 2, "0"),
        (("run", "tiny", ""), 2, "empty"),
        (("run", "tiny", "--json"), 2, "prompt"),
        (("run", "./nowhere", "x"), 1, "nowhere"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_failures_are_one_clear_error(moecli, arguments, code, words):
    result = moecli(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == "" or ("--json" in arguments and "error" in json.loads(result.stdout))


def test_threads_from_the_environment_are_checked(moecli):
    result = moecli("run", "tiny", "x", MOECLI_THREADS="many")
    assert result.returncode == 2 and "MOECLI_THREADS" in result.stderr


def _copy(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    return folder


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _lie(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((2**62).to_bytes(8, "little"))


def _bias(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": True}))


def _not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 3), folder / "pytorch_model.bin")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _hostile_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for i in range(10**9) %}{% for j in range(10**9) %}x{% endfor %}{% endfor %}"
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "cut short"),
        (_lie, "damaged"),
        (_bias, "attention_bias"),
        (_not_json, "not readable JSON"),
        (_pickle, "names torch.nn.modules.linear.Linear"),
        (_no_tokenizer, "no tokenizer that can be read"),
        (_hostile_template, "template"),
    ],
)
def test_damaged_models_end_in_one_error(moecli, tmp_path, damage, words):
    folder = _copy(tmp_path / "model")
    damage(folder)
    result = moecli("run", str(folder), "hello", "-n", "4")
    assert result.returncode == 1
    assert result.stderr.startswith("error:") and words in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_text_that_is_not_utf8_is_taken_as_it_can(command, environment):
    result = subprocess.run(
        [*command, "run", "tiny", b"caf\xe9", "-n", "4"],
        env=environment,
        input=b"\xff\xfe",
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


def test_an_ascii_terminal_gets_an_answer_all_the_same(moecli):
    result = moecli("run", "tiny", "Élève", *GREEDY, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.returncode == 0 and "Traceback" not in result.stderr


class Terminal:
    """moecli on a pseudo-terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        import pty

        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve(arguments[0], arguments, environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, times: int = 1, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while self.seen.count(text) < times:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if readable(self.descriptor, 1):
                self.seen += os.read(self.descriptor, 4096).decode(errors="replace")

    def wait_for_rest(self) -> None:
        """Until it sleeps: readline misses a Ctrl-C between its prompt and its wait (1 of 3000 on busy cores)."""
        process, asleep = psutil.Process(self.pid), 0
        while asleep < 5:
            asleep = asleep + 1 if process.status() == psutil.STATUS_SLEEPING else 0
            time.sleep(0.01)

    def exit_code(self) -> int:
        while True:
            try:
                self.seen += os.read(self.descriptor, 4096).decode(errors="replace")
            except OSError:
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_chat_remembers_clears_stops_and_leaves(command, environment):
    terminal = Terminal([*command, "run", "tiny", "-n", "8", "--temperature", "0"], environment | {"TERM": "dumb"})
    terminal.wait_for(">>> ")
    terminal.type("The sea\n")
    terminal.wait_for("tok/s", times=2)
    terminal.wait_for(">>> ", times=2)
    terminal.type(" and the sky\n")
    terminal.wait_for("cached")  # the first turn's keys and values are used again
    terminal.type("/clear\n")
    terminal.wait_for(">>> ", times=4)
    terminal.type("The sea\n")
    terminal.wait_for(">>> ", times=5)
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.seen
    answers = re.findall(r"The sea\r\n(.*)\r\n", terminal.seen)
    assert len(answers) == 2 and answers[0] == answers[1]


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_chat_knows_commands_pasted_text_and_earlier_messages(command, environment, tmp_path):
    kept = tmp_path / "home" / "chat-history.jsonl"
    settings = environment | {"TERM": "xterm", "MOECLI_HOME": str(kept.parent), "LC_ALL": "C"}
    terminal = Terminal([*command, "run", "tiny", "-n", "2", "--temperature", "0"], settings)
    typed = [
        ("/foo\n", "unknown command /foo"),
        ("/claer\n", "did you mean /clear?"),
        ("/help\n", "stops an answer"),
        ("\x03", "Ctrl-D or /bye leaves"),
        ("\x1b[200~one\n/two\x1b[201~\n", "tok/s"),
        ('"""a\nb\n"""\n', "cached"),
        ("/usr is\x15/usr/bin é\n", "cached"),
    ]
    for number, (keys, answer) in enumerate(typed, 1):
        terminal.wait_for(">>> ", times=number)
        terminal.wait_for_rest()
        terminal.type(keys)
        terminal.wait_for(answer)
    terminal.wait_for(">>> ", times=len(typed) + 1)
    terminal.type("exit\n")
    assert terminal.exit_code() == 0 and "Traceback" not in terminal.seen
    assert "tiny: a demonstration, knows nothing. Real: moecli run granite-3.1-1b --dtype q4" in terminal.seen
    assert terminal.seen.count("error:") == 2 and len(re.findall(r"answer \d", terminal.seen)) == 3
    messages = list(map(json.loads, kept.read_text().splitlines()))
    assert [message for message in messages if message[0] not in "/e"] == ["one\n/two", "a\nb"]
    assert "/usr/bin é" in messages and kept.stat().st_mode & 0o777 == 0o600


def test_history_is_bounded_and_bears_damage(tmp_path):
    kept = tmp_path / "history"
    kept.write_text("".join(f'"{number}"\n' for number in range(2001)))
    assert messages._read(kept) == [str(number) for number in range(1001, 2001)]
    assert len(kept.read_text().splitlines()) == 1000 and kept.stat().st_mode & 0o777 == 0o600
    kept.write_bytes(b'"a"\nnot json\n\xff\n"b"\n')
    assert messages._read(kept) == ["a", "b"]
    assert messages._read(tmp_path) == messages._read(tmp_path / "none") == []


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_a_turn_that_fails_is_not_part_of_the_chat(command, environment):
    arguments = ["run", "tiny", "-n", "2", "--ctx", "30", "--temperature", "0"]
    terminal = Terminal([*command, *arguments], environment | {"TERM": "dumb"})
    terminal.wait_for(">>> ")
    terminal.type("word " * 60 + "\n")
    terminal.wait_for("error: the prompt is")
    terminal.wait_for(">>> ", times=2)
    terminal.type("The sea\n")
    terminal.wait_for("tok/s")
    terminal.type("/bye\n")
    assert terminal.exit_code() == 0
    assert terminal.seen.count("error:") == 1


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_ctrl_c_stops_an_answer_but_not_the_chat(command, environment):
    terminal = Terminal([*command, "run", "tiny", *LONG], environment | {"TERM": "dumb"})
    terminal.wait_for(">>> ")
    terminal.type("The sea\n")
    terminal.wait_for("The sea\r\n")
    time.sleep(2)
    terminal.type("\x03")
    terminal.wait_for(">>> ", times=2)
    terminal.type("/bye\n")
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.seen

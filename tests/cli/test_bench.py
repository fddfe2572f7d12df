"""`moecli bench` as scripts and people use it: the document, the screen, exit codes, budgets, interruption."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

SHORT = ("--prompt-tokens", "24", "--max-tokens", "6", "--repeat", "2")
CONTRACT = {
    "schema_version", "model", "dtype", "device", "kernel", "threads", "prompt_tokens", "max_tokens", "repeat",
    "load_s", "prefill_tokens_per_s", "decode_tokens_per_s", "hit_rate", "bytes_read", "peak_rss_bytes",
    "planned_bytes", "forecast", "within_forecast", "read_bytes_per_token", "ram_bytes_per_s", "ram_share",
    "repetitions", "parallel", "parallel_tokens_per_s",
}  # fmt: skip


ANYTHING = {"_REACHED": (1e9, 1.0), "_STEP_S": (1e-9, 60.0), "_NATIVE_STEP_S": (1e-9, 60.0), "_CALL_S": (1e-9, 60.0)}
NOTHING = {"_STEP_S": (30.0, 60.0), "_NATIVE_STEP_S": (30.0, 60.0)}


def with_forecast(environment: dict[str, str], cases: dict[str, tuple[float, float]], *more: str):
    """A short bench of a program whose forecast takes these for the best and the worst."""
    program = f"from moecli.planning import speed; vars(speed).update({cases}); from moecli.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "bench", "tiny", *SHORT, *more],
        env=environment, capture_output=True, encoding="utf-8", timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_document_is_complete_and_its_verdict_is_the_exit_code(moecli):
    result = moecli("bench", "tiny", *SHORT, "--json")
    document = json.loads(result.stdout)
    assert document.keys() >= CONTRACT
    assert (document["prompt_tokens"], document["max_tokens"], document["repeat"]) == (24, 6, 2)
    assert (document["dtype"], document["device"], document["threads"]) == ("bf16", "cpu", 1)
    assert (document["hit_rate"], document["bytes_read"]) == (1, 0)
    assert len(document["repetitions"]) == 2
    forecast = document["forecast"]
    assert forecast["evidence"] == "measured" and forecast["disk_bandwidth_bytes_per_s"] is None
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        each = [repetition[name] for repetition in document["repetitions"]]
        assert min(each) <= document[name] <= max(each)
    inside = all(
        forecast[name]["low"] <= document[name] <= forecast[name]["high"]
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s")
    )
    assert document["within_forecast"] == inside
    assert result.returncode == (0 if inside else 3)
    assert result.stderr == ""


@pytest.mark.parametrize(("cases", "code", "word"), [(ANYTHING, 0, "as forecast"), (NOTHING, 3, "above it")])
def test_the_screen_says_what_the_exit_code_means(environment, cases, code, word):
    result = with_forecast(environment, cases, "--yes")
    assert result.returncode == code, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("tiny in bf16  ")
    speeds = [line for line in lines if line.startswith(("prefill", "decode"))]
    assert len(speeds) == 2
    assert all(line.endswith(word) for line in speeds)
    assert re.search(r"\nRAM +reads [\d.]+ GB/s.*;\s+decode reads .*% of it\n", result.stdout, re.DOTALL)
    assert re.search(r"^memory .* at the peak, .* planned$", result.stdout, re.MULTILINE)
    assert max(map(len, lines)) <= 80


def test_a_store_within_a_budget_reads_from_disk(moecli, tmp_path):
    store = tmp_path / "q8"
    assert moecli("pack", "tiny", "--dtype", "q8", "-o", str(store), "--quiet").returncode == 0
    work = (str(store), "--prompt-tokens", "500", "--max-tokens", "12", "--repeat", "1", "--json")
    needed = json.loads(moecli("memory", str(store), "--ctx", "512", "--json").stdout)["smallest_ram_bytes"]
    budget = needed - 2**20
    result = moecli("bench", *work, "--ram", f"{budget}B", "--policy", "lru", "--verbose")
    document = json.loads(result.stdout)
    assert result.returncode == (0 if document["within_forecast"] else 3), result.stderr
    assert document["dtype"] == "q8"
    assert 0 < document["hit_rate"] < 1 and document["bytes_read"] > 0
    assert document["ram_bytes_per_s"] is None and document["ram_share"] is None
    assert document["disk_bytes_per_s"] > 0 and document["forecast"]["disk_bandwidth_bytes_per_s"] > 0
    assert document["planned_bytes"]["ram"] <= budget
    assert document["peak_rss_bytes"] <= budget
    assert "RAM budget" in result.stderr and "disk:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("mixtrl",), 1, "mixtral"),
        (("tiny", "--repeat", "0"), 2, "--repeat 0"),
        (("tiny", "--policy", "luck"), 2, "unknown --policy 'luck'"),
        (("tiny", "--prompt-tokens", "99999"), 2, "99999"),
        (("tiny", "--ram", "9MiB"), 1, "budget is 9 MiB"),
    ],
)
def test_failures_are_one_clear_error(moecli, arguments, code, words):
    result = moecli("bench", *arguments)
    assert result.returncode == code
    assert result.stderr.startswith("error:") and words in result.stderr and "hint:" in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_ctrl_c_leaves_nothing_half_printed(command, environment):
    with subprocess.Popen(
        [*command, "bench", "tiny", "--repeat", "1000000", "--prompt-tokens", "8", "--verbose"], env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stderr and process.stderr.readline()  # the plan: what follows is loading and measuring
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and "Traceback" not in err


def test_a_slow_forecast_asks_first(environment):
    result = with_forecast(environment, NOTHING)
    assert result.returncode == 2
    assert "expect about 0." in result.stderr and "add --yes" in result.stderr
    assert result.stdout == ""

"""`moecli serve`: what it refuses before it listens. The server itself is tested in tests/serve/."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--keep-alive", "soon"], 2, "error: --keep-alive 'soon' is no duration\nhint: it takes "),
        (["--port", "70000"], 1, "error: cannot listen on 127.0.0.1:70000: "),
        (["--port", "-1"], 2, "error: --port -1 is out of range"),
        (["--host", "no such host"], 1, "error: cannot listen on no such host:11434: "),
        (["mixtral", "--offline"], 1, "error: model 'mixtral' (mistralai/Mixtral-8x7B-Instruct-v0.1) is not on"),
        (["--queue", "0"], 2, "error: --queue 0 is out of range"),
        (["--session", "file"], 2, "error: --session is of one model"),
    ],
)
def test_what_it_refuses(moecli, options, code, said):
    result = moecli("serve", *options)
    assert (result.returncode, result.stdout) == (code, "") and said in result.stderr
    assert "hint: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(missing, environment):
    hide = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['serve']"
    code = f"{hide}; from moecli.cli.app import main; main()"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert result.returncode == 1 and 'hint: pip install "moecli[serve]"' in result.stderr

"""The line and the bars that say how far long work is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import moecli
from moecli.engine.load import open_model
from moecli.output import loading, terminal
from moecli.output.bars import byte_bars
from moecli.planning.placement import fit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "done", "says"),
    [
        (0.05, 1, None),
        (0.5, 1_200, "tiny reads: 1,200 of 7,355 tokens"),
        (2, 1_200, "tiny reads: 1,200 of 7,355 tokens, 600 tokens/s, 10 s left"),
        (2, 2, "tiny reads: 2 of 7,355 tokens, 1 tokens/s, 2 h 2 min left"),
        (100, 7_355, None),
    ],
)
def test_it_says_how_much_how_fast_and_how_long(
    seconds: float, done: int, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 100.0 + seconds))
    monkeypatch.setattr(loading.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with loading.meter("tiny reads", "tokens", quiet=False) as watch:
        watch(done, 7_355)
    assert shown.getvalue().split("\r")[1:2] == ([] if says is None else [says])


def test_weights_are_told_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 104.0))
    monkeypatch.setattr(loading.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with loading.progress("mixtral-q4", quiet=False) as progress:
        progress(4 * 2**30, 23 * 2**30)
    assert shown.getvalue().split("\r")[2].rstrip() == "loading mixtral-q4: 4 GiB of 23 GiB, 1 GiB/s, 19 s left"


def test_a_model_that_fits_says_how_much_of_it_is_in_memory() -> None:
    folder = Path(moecli.__file__).with_name("tiny")
    told: list[tuple[int, int]] = []
    model = open_model(folder)
    model.decoder(fit(model.spec, "bf16", 64, 2**60), progress=lambda *each: told.append(each))
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 10e6
    told.clear()
    model.decoder(fit(model.spec, "q4", 64, 2**60), progress=lambda *each: told.append(each))
    assert len(told) > 7 * 8 and told == sorted(told) and told[-1][0] == told[-1][1] > 4e6


def test_nothing_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for quiet, stream in ((True, Terminal()), (False, io.StringIO())):
        monkeypatch.setattr("sys.stderr", stream)
        with loading.meter("x", "layers", quiet) as watch, terminal.status("loading ...", quiet):
            watch(1, 2)
        assert stream.getvalue() == ""


def test_a_line_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with terminal.Line() as line:
        line.show("a name that goes on and on and on")
        line.show("a name that goes on and on and on", "a short one", "another")
    assert "a short one" in shown.getvalue() and "another" not in shown.getvalue()
    assert max(map(len, shown.getvalue().split("\r"))) <= 20


@pytest.mark.parametrize(("columns", "shows"), [(40, ("50%",)), (70, ("0.5/1.0 GiB",)), (100, ("━", "0.5/1.0 GiB"))])
def test_bars_fit_the_terminal(columns: int, shows: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", Terminal())
    bars = byte_bars(14, quiet=False)
    bars.add_task("…el-00001-of-00019.safeten", total=2**30, completed=2**29)
    (line,) = bars.console.render_lines(bars.get_renderable())
    text = "".join(part.text for part in line)
    assert all(each in text for each in shows) and "…el-00001-of-00019.safeten" in text
    assert len(text) <= columns and "0:00:00" not in text

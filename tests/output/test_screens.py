"""The screen of `inspect --routing`: golden renders, and what holds at every width."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len

from moecli.errors import UsageError
from moecli.output.json.routing_report import document
from moecli.output.routing import View
from moecli.output.routing.heat import heats, limit_of
from moecli.output.routing.shades import BLOCKS, glyph, position
from moecli.routing.analysis import Analysis, analyse
from tests.support import reports as samples
from tests.support.screens import FOLDER, GOLDEN, TERMINALS, Screen, shown

pytestmark = pytest.mark.slow

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
SHAPES = ((8, 2, 6), (8, 2, 64), (64, 8, 6), (64, 8, 64), (256, 8, 6))
VIEWS = (View(sort=True), View(by_domain=True), View(layers=(1, 4)))


@pytest.mark.parametrize("each", GOLDEN, ids=lambda each: each.name)
def test_golden(each: Screen) -> None:
    assert each.text() == (FOLDER / f"{each.name}.txt").read_bytes().decode()


def test_every_golden_file_has_a_screen() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {each.name for each in GOLDEN}


def lines_of(analysis: Analysis, view: View, columns: int) -> list[str]:
    return shown(analysis, view, columns).splitlines()


def heatmap(lines: list[str], layers: int) -> list[str]:
    """The cells of each row of the first heatmap."""
    start = next(i for i, line in enumerate(lines) if re.match(r" +[01]( |$)", line)) + 1
    width = len(str(layers - 1)) + 1
    return [line[width:] for line in lines[start : start + layers]]


@pytest.mark.parametrize(
    ("view", "columns"), [(View(), 40), (View(), 80), (View(), 120), (View(), 200), *((view, 80) for view in VIEWS)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_fits_and_is_plain_in_a_pipe(shape: tuple[int, int, int], view: View, columns: int) -> None:
    text = shown(samples.sample(*shape), view, columns)
    lines = text.split("\n")
    assert max(map(cell_len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)
    assert not [c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"]


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("make", [samples.sample, samples.compared, samples.mixtral])
def test_every_terminal_reads_the_same(make: object, terminal: str) -> None:
    analysis = make()  # type: ignore[operator]
    text = shown(analysis, View(), 80, terminal)
    assert [line.rstrip() for line in ESCAPE.sub("", text).splitlines()] == lines_of(analysis, View(), 80)
    assert ("\x1b[" in text) == (terminal not in ("piped", "dumb"))
    colours = re.findall(r"\x1b\[[0-9;]*(?:3[0-7]|4[0-7]|[34]8;)[0-9;]*m", text)
    assert bool(colours) == (terminal.endswith(("colours", "truecolour")))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_an_ascii_stream_gets_ascii(columns: int) -> None:
    text = shown(samples.sample(64, 8, 6), View(), columns, encoding="ascii")
    assert text.isascii()
    assert heatmap(text.splitlines(), 6)[1].rstrip().endswith("." if columns > 68 else tuple(":-=+*#@"))


@pytest.mark.parametrize(("experts", "columns"), [(8, 40), (8, 80), (64, 80), (256, 80), (256, 200), (256, 40)])
def test_each_cell_is_the_busiest_of_its_neighbours(experts: int, columns: int) -> None:
    analysis = samples.sample(experts, 2 if experts == 8 else 8, 6)
    lines = lines_of(analysis, View(), columns)
    per, limit = -(-experts // (columns - 2)), limit_of(heats(analysis.report, View()))
    assert (f"busiest of {per} neighbours" in " ".join(lines)) == (per > 1)
    for layer, cells in zip(analysis.report.layers, heatmap(lines, 6), strict=True):
        marks = [mark for mark, *_ in re.findall(r"([▁▂▃▄▅▆█·])( ?\1*)", cells)] if per == 1 and experts == 8 else cells
        values = [max(layer.utilisation[i : i + per]) for i in range(0, experts, per)]
        assert "".join(marks) == "".join(glyph(BLOCKS, position(v, limit)) if v else "·" for v in values)


def test_a_dead_expert_is_a_dot_among_the_numbers_too() -> None:
    rows = heatmap(lines_of(samples.sample(), View(), 80), 6)
    assert rows[1].endswith("·") and sum("·" in row for row in rows) == 1
    busiest = samples.sample().report.layers[1].utilisation[0]
    assert rows[1].split()[1] == f"{busiest:.2f}"


def test_sorted_rows_fall() -> None:
    analysis = samples.sample(64, 8, 6)
    for row in heatmap(lines_of(analysis, View(sort=True), 80), 6):
        ranks = [("·" + BLOCKS.ramp).index(mark) for mark in row[:64]]
        assert len(ranks) == 64 and ranks == sorted(ranks, reverse=True)


def test_sorted_rows_keep_the_numbers_of_the_experts() -> None:
    for experts, columns in ((8, 80), (64, 80), (256, 80)):
        analysis = samples.sample(experts, 2 if experts == 8 else 8, 6)
        rows = heatmap(lines_of(analysis, View(sort=True), columns), 6)
        for layer, row in zip(analysis.report.layers, rows, strict=True):
            busiest = sorted(range(experts), key=lambda expert: -layer.counts[expert])
            found = [int(word) for word in row.split() if word.isdigit()]
            assert found[:3] == busiest[:3] and len(found) == (8 if experts == 8 else 3)


def test_eight_experts_have_eight_colours() -> None:
    text = shown(samples.sample(), View(), 80, "truecolour")
    assert "others" not in text and "48;2;153;153;153m" in text
    assert "others" in shown(samples.sample(64, 8, 6), View(), 80)


@pytest.mark.parametrize("columns", [40, 80])
def test_names_of_strangers_do_no_harm(columns: int) -> None:
    domains = ("\x1b]0;owned\x07\x1b[2J", "é" * 40, "a\nb\u202e", "x" * 300)
    drawn = replace(samples.trace(domains=domains), model="m\x1b[31m\n" + "z" * 300)
    text = shown(analyse(drawn, other=drawn, note="n\x1b[1m"), View(by_domain=True), columns)
    assert not [c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"]
    assert max(map(cell_len, text.splitlines())) <= columns
    assert "\\x1b]0;owned" in text and "\nb\\u202e" not in text


def test_figures_are_those_of_the_report() -> None:
    analysis = samples.sample()
    routing = document(analysis.report)
    text = "\n".join(lines_of(analysis, View(), 120))
    overall = routing["overall"]
    for name, value in (
        ("norm. entropy", f"{overall['entropy']:.3f}"),
        ("MaxVio", f"{overall['max_violation']:.2f}"),
        ("repeat, first", f"{overall['repeat_top1']:.1%}"),
        ("repeat, any", f"{overall['baseline']['repeat_any']:.1%}"),
    ):
        assert value in re.search(f"^{name} .*$", text, re.MULTILINE)[0]  # type: ignore[index]
    verdict = analysis.report.verdict
    assert verdict is not None and f"keep {verdict.recommended_slots} of 8 (--ram 15GiB)" in text


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (8, "specialise by domain, beyond chance in 6 of 6 layers"),
        (2, "dealt to them in 15 ways only, and no p-value is below 0.07; 5 prompts of each are enough"),
        (1, "with one prompt of a domain, domain and prompt cannot be told apart; 5 prompts of each are enough"),
    ],
)
def test_specialisation_is_claimed_where_the_prompts_can_say_it(prompts: int, says: str) -> None:
    text = " ".join(shown(analyse(samples.trace(tokens=720, prompts=prompts)), View(), 120).split())
    assert says in text
    assert ("No verdict on the domains" in text) == (prompts < 8)


def test_labels_dealt_to_prompts_are_no_domains() -> None:
    drawn = samples.trace(tokens=1440, prompts=8, domains=("one", "two"), seed=3)
    dealt = replace(drawn, domain=np.random.default_rng(1).permutation(16)[drawn.prompt].astype("u2") % 2)
    text = " ".join(shown(analyse(dealt), View(), 120).split())
    assert "The domains do not load the experts differently beyond chance, in any layer." in text
    assert "*" not in text.split("JSD, bit one two")[1].split("The domains")[0]


def test_a_domain_of_one_prompt_is_left_out_of_the_verdict() -> None:
    drawn = samples.trace(tokens=1440, prompts=8)
    alone = np.where(drawn.prompt == 23, 3, drawn.domain).astype("u2")
    named = replace(drawn, domain=alone, domains=(*drawn.domains, "lonely"))
    text = " ".join(shown(analyse(named), View(), 120).split())
    assert "beyond chance in 6 of 6 layers" in text and "Left out, with one prompt each: lonely." in text
    row = re.search(r"lonely((?: [\d.]+\*?){3}) - ", text)
    assert row is not None and "*" not in row[1]


@pytest.mark.parametrize(("tokens", "said"), [(4, "No verdict on caching: 4"), (39, "below 40"), (40, "keep")])
def test_no_verdict_on_caching_while_slots_fill(tokens: int, said: str) -> None:
    drawn = samples.trace(tokens=tokens, domains=("english",)) if tokens > 11 else samples.trace(tokens=40)
    if tokens < 12:
        few = slice(0, tokens)
        layers = tuple(replace(layer, chosen=layer.chosen[few], weights=None, entropy=None) for layer in drawn.layers)
        cut = {name: getattr(drawn, name)[few] for name in ("ids", "prompt", "domain", "generated")}
        drawn = replace(drawn, layers=layers, **cut)
    text = " ".join(shown(analyse(drawn), View(), 120).split())
    assert said in text and ("pays here" in text) == ("Recommended" in text) == (tokens >= 40)


def test_few_tokens_are_said_to_be_few() -> None:
    assert "Too few tokens" in shown(analyse(samples.trace(64, 8, 3, tokens=40)), View(), 120)
    assert "Too few tokens" not in shown(samples.sample(), View(), 120)


def test_chosen_layers_alone() -> None:
    lines = lines_of(samples.sample(), View(layers=(1, 4)), 80)
    assert [line[0] for line in lines[4:6]] == ["1", "4"] and "2 layers of 8 experts" in lines[1]
    with pytest.raises(UsageError, match="layer 9"):
        shown(samples.sample(), View(layers=(0, 9)))


def test_layers_with_other_numbers_of_experts() -> None:
    wide, narrow = samples.trace(64, 8, 2), samples.trace(8, 2, 3)
    mixed = replace(narrow, layers=(*narrow.layers[:2], replace(wide.layers[0], layer=2)))
    rows = heatmap(lines_of(analyse(mixed), View(), 80), 3)
    assert [len(row.rstrip()) for row in rows] == [8, 8, 64]


def test_a_trace_of_choices_alone() -> None:
    """No text, no weights, one token: figures that need more are left out."""
    full = samples.trace(tokens=30)
    bare = replace(full, pieces={}, layers=tuple(replace(one, weights=None, entropy=None) for one in full.layers))
    text = shown(analyse(bare), View(), 80)
    assert "gate entropy" not in text and "first choice" not in text

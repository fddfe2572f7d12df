"""The page of HTML: what its source promises, and what a real browser makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moecli.output.routing import View, render
from moecli.output.routing.text import legend_of
from moecli.routing.analysis import Analysis, analyse
from tests.support import reports as samples
from tests.support.browser import NAMES, Browser, find
from tests.support.screens import WHOLE

pytestmark = pytest.mark.slow


class Source(HTMLParser):
    """Tags, attributes and the text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def page(analysis: Analysis, view: View = WHOLE) -> str:
    return render(analysis, "html", view).decode()


def test_the_source_asks_for_nothing_and_holds_no_tag_of_a_stranger() -> None:
    hostile = samples.trace(domains=("</script><script>alert(1)</script><img src=x onerror=alert(1)>", "english"))
    tags = Source(page(analyse(hostile), View(by_domain=True))).tags
    known = (
        "html head meta title style body header h1 p main section h2 div svg path text label input output span dl dt "
        "dd i br wbr noscript table thead tbody tr th td script"
    )
    assert {tag for tag, _ in tags} <= set(known.split())
    assert [attributes for tag, attributes in tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {},
    ]  # fmt: skip
    names = {name for _, attributes in tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src", "style", "xlink:href")]


def test_no_place_of_the_template_is_left_and_none_is_filled_by_a_token() -> None:
    content = page(samples.sample())
    assert not re.search("<!--[a-z]+-->", content)
    assert "&lt;!--data--&gt;" in content


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find()
    if path is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(NAMES)} is on the PATH")
    found = Browser(path, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    yield open_page(browser, tmp_path, samples.sample())
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    browser.ask("Emulation.setEmulatedMedia", features=[])


def open_page(browser: Browser, folder: Path, analysis: Analysis, view: View = WHOLE) -> Browser:
    file = folder / "page.html"
    file.write_text(page(analysis, view), encoding="utf-8")
    browser.open(file)
    return browser


def shown(browser: Browser, name: str) -> str:
    return str(browser.run(f"document.getElementById('{name}').textContent"))


def first_choices(analysis: Analysis, layer: int) -> list[int]:
    return [int(expert) for expert in analysis.trace.layers[layer].chosen[:, 0]]


def test_it_asks_for_itself_alone_and_nothing_goes_wrong(opened: Browser) -> None:
    assert len(opened.requests) == 1 and opened.requests[0].startswith("file:///")
    assert opened.complaints == []
    assert opened.run("document.title") == "Routing of sample in bf16"


def test_the_policy_refuses_a_script_that_got_in(opened: Browser) -> None:
    opened.run(
        "{const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)}"
    )
    assert opened.run("window.owned === undefined")
    assert opened.complaints


def test_the_slider_goes_through_the_layers(opened: Browser) -> None:
    analysis = samples.sample()
    opened.run("document.getElementById('layer').focus()")
    for _ in range(6):
        opened.key("ArrowLeft")
    for number, layer in enumerate(analysis.report.layers):
        assert shown(opened, "which") == str(number)
        assert f"MaxVio {layer.balance.max_violation:.2f}" in shown(opened, "figures")
        marks = opened.run("[...document.querySelectorAll('.t i')].map(mark => Number(mark.textContent))")
        assert marks == first_choices(analysis, number)
        key = legend_of(layer, marks)
        classes = opened.run("[...document.querySelectorAll('.t')].map(span => span.className)")
        colours = [key.colour(expert) for expert in first_choices(analysis, number)]
        assert classes == ["t k" if colour is None else f"t k{colour}" for colour in colours]
        opened.key("ArrowRight")


def test_a_token_shows_its_experts_and_weights(opened: Browser) -> None:
    analysis = samples.sample()
    for token, move in ((5, "pointer"), (6, "ArrowRight"), (5, "ArrowLeft")):
        if move == "pointer":
            x, y = opened.run(
                "(() => {const b = document.querySelectorAll('.t')[5]; b.scrollIntoView({block: 'center'});"
                "const r = b.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]})()"
            )
            opened.mouse(x, y)
            opened.run("document.querySelectorAll('.t')[5].focus()")
        else:
            opened.key(move)
        layer = int(shown(opened, "which"))
        traced = analysis.trace.layers[layer]
        text = shown(opened, "token")
        assert traced.weights is not None
        for expert, weight in zip(traced.chosen[token], traced.weights[token], strict=True):
            assert f"expert {expert} (weight {weight:.3f})" in text
        assert text.endswith(" ".join(str(one.chosen[token, 0]) for one in analysis.trace.layers))
    before = shown(opened, "which")
    opened.key("ArrowDown")
    assert shown(opened, "which") == str(int(before) + 1) and f"layer {int(before) + 1}:" in shown(opened, "token")


def test_tab_reaches_everything(opened: Browser) -> None:
    opened.run("document.activeElement.blur()")
    reached = []
    for _ in range(6):
        opened.key("Tab")
        reached.append(opened.run("document.activeElement.id || document.activeElement.className.split(' ')[0]"))
    assert reached[:2] == ["heatmap", "layer"] and "t" in reached


@pytest.mark.parametrize("view", [View(), View(by_domain=True, layers=(1, 4)), View(sort=True)], ids=str)
def test_a_cell_under_the_pointer_is_named_and_chooses_its_layer(browser: Browser, tmp_path: Path, view: View) -> None:
    analysis = samples.sample()
    open_page(browser, tmp_path, analysis, view)
    layers = view.layers or range(6)
    for row in (0, len(layers) - 1):
        x, y = browser.run(
            "(() => {const b = data.blocks.at(-1), m = document.querySelector('#heatmap svg').getScreenCTM();"
            f"const p = new DOMPoint(b.x + 7.5 * b.width, b.y + {row + 0.5} * b.height).matrixTransform(m);"
            "return [p.x, p.y]})()"
        )
        browser.mouse(x, y, click=True)
        layer = analysis.report.layers[layers[row]]
        assert shown(browser, "which") == str(layer.layer)
        values = layer.by_domain[-1] if view.by_domain else layer.counts
        value = (sorted(values, reverse=True) if view.sort else values)[7] * 8 / sum(values)
        last = sorted(range(8), key=lambda expert: -values[expert])[7]
        who = f"expert {last}, rank 8" if view.sort else "expert 7"
        expected = f"layer {layer.layer}, {who}: " + (f"{value:.2f}x" if value else "no token")
        assert shown(browser, "cell").endswith(expected)


def test_without_javascript_the_page_still_shows(opened: Browser) -> None:
    opened.ask("Emulation.setScriptExecutionDisabled", value=True)
    opened.reload()
    root = opened.ask("DOM.getDocument", depth=-1)["root"]["nodeId"]
    found = {
        selector: len(opened.ask("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])
        for selector in ("#heatmap svg path", ".t", ".curve path.line", "table tr", "#legend span")
    }
    assert found["#heatmap svg path"] > 5 and found[".t"] == 360 and found[".curve path.line"] >= 12
    assert found["table tr"] > 15 and found["#legend span"] == 8


def test_dark_and_light(opened: Browser) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        opened.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        ground, ink, cell = opened.run(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, "
            "getComputedStyle(document.querySelector('.heat .s12')).fill]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
        assert abs(brightness[0] - brightness[1]) > 400
        grounds.add((ground, cell))
    assert len(grounds) == 2 and len({cell for _, cell in grounds}) == 2


def test_nothing_overflows_a_narrow_window(opened: Browser) -> None:
    for width in (360, 1200):
        opened.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        assert opened.run("document.documentElement.scrollWidth <= window.innerWidth")
    opened.ask("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("make", [samples.compared, samples.mixtral, lambda: samples.sample(64, 8, 64)])
def test_every_kind_of_analysis_opens(browser: Browser, tmp_path: Path, make: object) -> None:
    open_page(browser, tmp_path, make())  # type: ignore[operator]
    assert browser.complaints == [] and len(browser.requests) == 1

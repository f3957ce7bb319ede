"""The page in a real browser: Chromium, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cl_diffusion.report.page import write_report
from tests.report.browser import CHROMIUM, Page, browser
from tests.report.runs import HOSTILE, write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (the package `chromium` of Debian)")

CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const shine = ([r, g, b]) => [r, g, b].map((c) => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const of = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !of.checkVisibility()) continue;
    const drawn = of.closest("svg") !== null;
    const ink = parse(drawn ? getComputedStyle(of).fill : getComputedStyle(of).color);
    if (drawn && [0, 255].some((level) => ink.slice(0, 3).every((c) => c === level))) continue;  // on a cell of its own
    const [a, b] = [shine(ink), shine(ground(drawn ? of.closest("svg").parentElement : of))].sort((x, y) => y - x);
    seen += 1;
    if ((a + .05) / (b + .05) < 4.5) poor.push([walker.currentNode.textContent.trim(), (a + .05) / (b + .05)]);
  }
  return [seen, poor];
})()"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write(folder / f"ewc_{seed}", seed=seed, shift=0.02 * seed)
    write(folder / "finetune", strength=None, shift=-0.3)
    write_report([folder], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(autouse=True)
def _without_complaint(page: Page) -> Iterator[None]:
    page.complaints.clear()
    yield
    assert page.complaints == []


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_figures_are_there_and_nothing_leaves_the_screen(page: Page, report: Path, width: int, dark: bool) -> None:
    page.open(report, width=width, dark=dark)
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.run("[...document.querySelectorAll('figure > svg')].filter((s) => s.checkVisibility()).length") > 8
    drawn = "[...document.querySelectorAll('figure > svg')].filter((s) => s.checkVisibility())"
    assert page.run(f"{drawn}.every((s) => s.getBoundingClientRect().width > 200)")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True])
def test_every_word_stands_out_from_its_ground(page: Page, report: Path, dark: bool) -> None:
    page.open(report, dark=dark)
    page.run("document.querySelectorAll('details').forEach((each) => each.open = true)")
    seen, poor = page.run(CONTRAST)
    assert seen > 300
    assert poor == []


def test_dark_is_dark(page: Page, report: Path) -> None:
    grounds = []
    for dark in (False, True):
        page.open(report, dark=dark)
        grounds.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_the_keyboard_skips_sorts_and_moves_through_the_stream(page: Page, report: Path) -> None:
    page.open(report)
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    rows = "[...document.querySelector('#summary tbody').rows].map((row) => row.cells[0].textContent)"
    assert page.run(rows) == ["ewc", "finetune"]
    page.run("document.querySelectorAll('#summary th button')[2].focus()")
    page.press("Enter")
    assert page.run(rows) == ["finetune", "ewc"]
    assert page.run("document.activeElement.closest('th').ariaSort") == "ascending"
    page.press("Enter")
    assert page.run(rows) == ["ewc", "finetune"]
    figures = "[...document.querySelectorAll('#samples figure')]"
    shown = f"{figures}.filter((f) => f.checkVisibility()).map((f) => f.dataset.after)"
    page.run("document.querySelector('#samples input[type=range]').focus()")
    assert page.run(shown) == ["3", "3"]
    page.press("ArrowLeft")
    assert page.run(shown) == ["2", "2"]
    page.press("Tab")
    page.press(" ")
    assert page.run(shown) == ["1", "2", "3"] * 2
    assert page.run("document.activeElement.matches(':focus-visible')")


def test_print_shows_all_samples_and_no_controls(page: Page, report: Path, tmp_path: Path) -> None:
    page.open(report, media="print")
    assert page.run("[...document.querySelectorAll('#samples figure')].every((figure) => figure.checkVisibility())")
    assert not page.run("document.querySelector('nav').checkVisibility()")
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_words_of_a_run_do_nothing(page: Page, tmp_path: Path) -> None:
    write(tmp_path / "a", text=HOSTILE)
    write(tmp_path / "b", text=HOSTILE, strength=None)
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html", title=HOSTILE)
    page.open(tmp_path / "report.html")
    assert page.run("window.pwned === undefined")
    assert page.run("document.title") == HOSTILE

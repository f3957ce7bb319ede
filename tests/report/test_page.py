from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from cl_diffusion.callbacks.diagnostics.sample_grid import log_grid
from cl_diffusion.report.page import write_report
from cl_diffusion.report.pictures import embedded
from tests.report.runs import HOSTILE, picture, write


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self.words += " "

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write(folder / f"ewc_{seed}", seed=seed, shift=0.02 * seed)
    write(folder / "finetune", strength=None)
    write_report([folder], folder / "report.html")
    return (folder / "report.html").read_text()


def test_it_holds_everything_that_a_run_has_written(page: str) -> None:
    sections = {attributes["id"] for attributes in Elements(page).all("section") if "id" in attributes}
    wanted = {"summary", "metrics", "samples", "training", "plasticity", "audits", "cost", "differences", "provenance"}
    assert sections == wanted


def test_it_reads_nothing_from_elsewhere(page: str) -> None:
    read = Elements(page)
    addresses = [a[key] for _, a in read.elements for key in ("src", "href", "xlink:href") if key in a]
    assert addresses
    assert all(address and address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", page)
    assert {a["rel"] for a in read.all("link")} == {"icon"}


def test_its_policy_lets_its_own_script_run_and_no_other(page: str) -> None:
    (policy,) = [a["content"] for a in Elements(page).all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_picture_says_what_it_shows(page: str) -> None:
    read = Elements(page)
    pictures = [a.get("alt") for a in read.all("img")] + [a.get("aria-label") for a in read.all("svg")]
    assert len(pictures) > 10
    assert all(said and len(said) > 20 for said in pictures)


def test_names_are_of_one_element_each_and_references_find_them(page: str) -> None:
    read = Elements(page)
    names = [str(a["id"]) for _, a in read.elements if "id" in a]
    assert len(names) == len(set(names))
    referred = set(re.findall(r'(?:href|aria-labelledby)="#?([\w-]+)"', page)) | set(
        re.findall(r"url\(#([\w-]+)\)", page)
    )
    assert referred
    assert referred <= set(names)


def test_the_drawings_are_whole_and_in_the_page_s_own_colours(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) > 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "var(--series-2)" in page
    assert "#26282b" not in "".join(drawings)


def test_the_numbers_are_those_of_the_file(page: str) -> None:
    words = " ".join(Elements(page).words.split())
    assert "finetune 1 0.7 0.2 -0.3 0.6 0.9" in words  # (.5 + .7 + .9) / 3, (.4 + .2) / 3, -.6 / 2, (.5 + .7) / 2, .9
    assert "ewc 2 0.71 ± 0.13 0.2 ± 0" in words  # t_{.975, 1} = 12.7 times .0141 / sqrt(2)


def test_every_session_of_a_run_is_told(tmp_path: Path) -> None:
    record = json.loads((write(tmp_path / "one") / "run.json").read_text())
    (session,) = record["sessions"]
    killed = {**session, "command": "the first command", "ended": None, "outcome": None}
    again = {**session, "command": "the second command"}
    (tmp_path / "one" / "run.json").write_text(json.dumps({"sessions": [killed, again]}))
    write_report([tmp_path / "one"], tmp_path / "report.html")
    words = Elements((tmp_path / "report.html").read_text()).words
    assert "session 1 of 2" in words
    assert "the first command" in words
    assert "the second command" in words


def test_rows_of_samples_are_named_where_the_picture_says_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", tasks=1)
    images, labels = torch.zeros(6, 1, 4, 4), torch.tensor([3, 3, 8, 8, 9, 9])
    log_grid(SimpleNamespace(loggers=[]), images, labels, folder / "samples" / "after_task_1.png")  # type: ignore[arg-type]
    write_report([folder], tmp_path / "report.html")
    every = [str(a["alt"]) for a in Elements((tmp_path / "report.html").read_text()).all("img")]
    (generated,) = [alt for alt in every if alt.startswith("Images generated")]
    assert generated.endswith("a row a class: 3, 8, 9")


def test_what_a_figure_is_does_not_depend_on_the_metric_that_comes_first(page: str) -> None:
    words = " ".join(Elements(page).words.split())
    explained = words[words.index("What the figures are") :][:900]
    assert "Higher is better" not in explained
    assert "whether higher (↑) or lower (↓) is better" in explained


def test_no_word_of_a_run_is_more_than_a_word(tmp_path: Path) -> None:
    for name, text in (("hostile", HOSTILE), ("tame", "plain")):
        write(tmp_path / name / "a", text=text)
        write(tmp_path / name / "b", text=text, strength=None)
        write_report([tmp_path / name], tmp_path / f"{name}.html", title=text)
    hostile, tame = (Elements((tmp_path / f"{name}.html").read_text()) for name in ("hostile", "tame"))
    assert len(hostile.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in hostile.elements)
    outside = [
        [tag for tag, _ in each.elements if tag in ("script", "style", "img", "svg", "section")]
        for each in (hostile, tame)
    ]
    assert outside[0] == outside[1]
    assert HOSTILE in hostile.words


def test_a_run_of_a_foreign_project_has_the_sections_of_what_it_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,train_loss\n1,0.5\n2,0.4\n")
    write_report([folder], tmp_path / "report.html")
    read = Elements((tmp_path / "report.html").read_text())
    assert {a["id"] for a in read.all("section") if "id" in a} == {"training", "provenance"}


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    folder, other = write(tmp_path / "run"), tmp_path / "thesis.html"
    other.write_text("<p>years of work")
    with pytest.raises(ValueError, match=r"thesis.html' is a file that is no report of ours"):
        write_report([folder], other)
    assert other.read_text() == "<p>years of work"
    with pytest.raises(ValueError, match="is a folder"):
        write_report([folder], tmp_path)
    write_report([folder], tmp_path / "report.html")
    write_report([folder], tmp_path / "report.html", title="again")
    assert "<h1>again</h1>" in (tmp_path / "report.html").read_text()


def test_a_large_picture_is_made_smaller_and_what_is_none_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "large.png", side=2000)
    address, smaller = embedded(tmp_path / "large.png")
    assert smaller
    assert address.startswith("data:image/png;base64,")
    assert not embedded(_small(tmp_path))[1]
    (tmp_path / "none.png").write_text("<script>")
    with pytest.raises(ValueError, match=r"none.png is no PNG"):
        embedded(tmp_path / "none.png")


def _small(folder: Path) -> Path:
    picture(folder / "small.png")
    return folder / "small.png"

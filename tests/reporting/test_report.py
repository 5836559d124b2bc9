"""The report from a results folder of made-up rows: complete, self-contained, and the same when made twice."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import make_results
import outcomes
import pandas as pd
import pytest
import yaml

from tritonmoe_bench.experiments import checkout
from tritonmoe_bench.experiments.claims import CLAIMS, DISPUTED, Verdict
from tritonmoe_bench.experiments.reporting import context, render, section
from tritonmoe_bench.experiments.reporting import tables as report_tables
from tritonmoe_bench.experiments.reporting.sections import hazards
from tritonmoe_bench.experiments.table import store

ROOT = Path(__file__).resolve().parents[2]
DEVICE = make_results.DEVICE
IDS, DISPUTED_IDS = (
    [claim["id"] for claim in yaml.safe_load(path.read_text(encoding="utf-8"))] for path in (CLAIMS, DISPUTED)
)


class Page(HTMLParser):
    """Tags and attributes that load something, links, and the text of the claims' first cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        (self.links if tag == "a" else self.loaded).extend(values[name] for name in ("src", "href") if name in values)


def test_markdown_has_each_claim_once_with_its_verdict_and_how_to_decide_it_again(written):
    text = (written / "results" / "REPORT.md").read_text(encoding="utf-8")
    verdicts = "|".join(verdict.value for verdict in Verdict)
    claims = text.split("\n## Claims\n")[1].split("\n## ")[0]
    assert re.findall(r'<a id="claim-(.+)"></a>', claims) == IDS
    assert re.findall(r"^\| \[.+?\]\(#claim-(.+?)\) \|", claims, re.MULTILINE) == IDS
    for claim in claims.split("<a id=")[1:]:
        [line] = re.findall(r"^- verdict: (.*)$", claim, re.MULTILINE)
        assert 1 <= len(re.findall(rf"\*\*({verdicts})\*\*", line)) <= 2
        [line] = re.findall(r"^- again: (.*)$", claim, re.MULTILINE)
        assert re.fullmatch(
            r"(`make \w+( STUDY=\w+ FORCE=true)?` \(\d+ min( on two CPU cores)?\), )*then `make report`", line
        )
        assert re.search(r"^- reproduced if: .+\.$", claim, re.MULTILINE)


def test_html_has_each_claim_once_and_a_table_of_contents_with_every_heading(written):
    html = (written / "results" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<a id="claim-(.+?)">', html) == IDS + DISPUTED_IDS
    contents = html.split("<nav")[1].split("</nav>")[0]
    linked = re.findall(r'href="#(.+?)"', contents)
    assert linked == re.findall(r'<h[23] id="(.+?)">', html)
    assert len(linked) == len(set(linked)) > 20


def test_html_needs_no_network(written):
    html = (written / "results" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.loaded
    assert all(re.match("data:image/(png|webp);base64,", source) for source in page.loaded)
    outside = ("https://arxiv.org/", "https://github.com/", "reference/README.md")
    assert all(link.startswith(("#", *outside)) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert not {"iframe", "link"} & set(page.tags)
    assert page.tags["script"] == html.count("<script>") == 1
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://(?!arxiv|github)", html)
    assert "@import" not in html
    assert "url(" not in html


def test_markdown_links_to_pictures_that_exist(written):
    text = (written / "results" / "REPORT.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    drawn = sorted(path.stem for path in (written / "plots" / "figures" / DEVICE).glob("*.png"))
    assert len(drawn) == 3
    assert sorted(Path(path).stem for _, path in pictures) == drawn
    assert all(says == f"What {Path(path).stem} says" for says, path in pictures)
    assert all((written / "results" / path).exists() for _, path in pictures)
    assert all(f'<a id="figure-{name}"></a>' in text for name in drawn)


def test_readme_block_is_replaced_and_nothing_else(written):
    readme = written / "README.md"
    first = readme.read_text(encoding="utf-8")
    assert first.startswith("# Title\n\n" + render.BEGIN)
    assert first.endswith(render.END + "\n\nkept\n")
    assert "old" not in first.splitlines()
    assert first.count("![") == 1
    assert f"](plots/figures/{DEVICE}/headline.png)" in first
    assert len(re.findall(r"\(results/REPORT.md#claim-(.+?)\)", first)) == 5
    render.write_report(written / "results", written / "plots" / "figures", DEVICE, readme)
    assert readme.read_text(encoding="utf-8") == first


@pytest.mark.parametrize("text", ["no markers\n", f"{render.END}\n{render.BEGIN}\n", f"{render.BEGIN}\n"])
def test_readme_without_both_markers_is_left_alone(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    assert not render.replace_block(path, "block")
    assert path.read_text(encoding="utf-8") == text


def test_the_same_rows_in_another_order_give_the_same_bytes(written, tmp_path):
    for root in (tmp_path / "one", tmp_path / "two"):
        shutil.copytree(written, root)
    for path in (tmp_path / "two" / "results").glob("*/*.csv"):
        pd.read_csv(path, dtype="string").sample(frac=1, random_state=3).to_csv(path, index=False)
    for root in (tmp_path / "one", tmp_path / "two"):
        render.write_report(root / "results", root / "plots" / "figures", DEVICE, root / "README.md")
    for file in ("results/REPORT.md", "results/report.html", "README.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_sections_stand_in_their_order_and_one_with_nothing_to_show_is_left_out(written):
    text = (written / "results" / "REPORT.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    every = [module.TITLE for module in section.modules()]
    assert titles == [title for title in every if title in titles]
    assert "Other GPUs" in set(every) - set(titles)


def test_every_row_without_a_timing_is_counted_with_its_reason(written):
    folder = written / "results" / DEVICE
    frames = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    counted = sum(int(row[4]) for row in report_tables.missing_table(frames).rows)
    assert counted == sum(int((frame["status"] != "ok").sum()) for frame in frames.values()) > 0
    assert all(row[5] for row in report_tables.missing_table(frames).rows)


def test_report_without_any_results_says_so(tmp_path):
    (tmp_path / "results").mkdir()
    render.write_report(tmp_path / "results", tmp_path / "figures", "no device", tmp_path / "README.md")
    text = (tmp_path / "results" / "REPORT.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^- verdict: .*\*\*undecided\*\*$", text, re.MULTILINE)) == len(IDS) + len(DISPUTED_IDS)
    assert "There are no rows" in text
    assert not (tmp_path / "README.md").exists()


def test_command_line(written, tmp_path):
    results = tmp_path / "results"
    (results / DEVICE).mkdir(parents=True)
    for path in (written / "results" / DEVICE).glob("skew.*"):  # the whole folder is written by other tests
        shutil.copy(path, results / DEVICE)
    arguments = [
        f"results={results}", f"figures={written}/plots/figures", f"readme={tmp_path}/no.md",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "experiments" / "report.py"), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert DEVICE in (results / "REPORT.md").read_text(encoding="utf-8")
    done = subprocess.run(
        [*command, "device=nvidia-h2000"], capture_output=True, encoding="utf-8", errors="replace", cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: no results of device nvidia-h2000; there are: {DEVICE}"
    (results / "REPORT.md").unlink()
    (results / "REPORT.md").mkdir()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: cannot write {results / 'REPORT.md'}: Is a directory"
    (results / DEVICE / "skew.json").write_text("{", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {results / DEVICE / 'skew.json'}: no JSON")


@pytest.mark.parametrize(
    "name", ["tests-here.json", "portability.csv", "paper-tests-here.json", "portability_authors.csv"]
)
def test_a_damaged_file_beside_the_devices_is_named(name, tmp_path):
    (tmp_path / name).write_text("", encoding="utf-8")
    with pytest.raises(store.Damaged, match=name):
        context.load_outcomes(tmp_path)


def test_hazards_are_those_of_the_papers_readme_and_tables(written):
    html = (written / "results" / "report.html").read_text(encoding="utf-8")
    assert "7.93 ms" in html
    assert "3.99 ms" in html
    with pytest.raises(IndexError):
        hazards.hazards("# a readme without that heading")


def test_outcomes_are_recorded_by_group_only_when_asked(tmp_path):
    (tmp_path / "outcomes.py").write_text(
        Path(outcomes.__file__)
        .read_text(encoding="utf-8")
        .replace("Path(__file__).resolve().parents[1]", "Path(__file__).parent"),
        encoding="utf-8",
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "conftest.py").write_text("from outcomes import *\n", encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = paper_grid\n", encoding="utf-8")
    (tmp_path / "test_some.py").write_text(
        "import outcomes, pytest\n"
        "outcomes.where = lambda: 'somewhere'\n"
        "@pytest.mark.paper_grid\n@pytest.mark.parametrize('n', range(3))\ndef test_grid(n): assert n\n"
        "@pytest.fixture\ndef broken():\n    yield\n    raise ValueError\n"
        "def test_ours(broken): assert False\n"
        "def test_skipped(): pytest.skip('why')\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    path = tmp_path / "results" / "tests-somewhere.json"
    plain = {name: value for name, value in checkout.program_environment().items() if name != outcomes.SWITCH}
    told = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env=plain, encoding="utf-8", errors="replace"
    ).stdout
    assert "the paper's cases on somewhere: 2 passed, 1 failed" in told
    assert "tests of our own on somewhere: 1 failed, 1 skipped" in told
    assert not path.exists()
    subprocess.run(command, capture_output=True, cwd=tmp_path, env=plain | {outcomes.SWITCH: "1"})
    told = json.loads(path.read_text(encoding="utf-8"))
    assert all(group.pop("when_utc") for group in told.values())  # the two may be of two seconds
    of = {"commit": told["ours"]["commit"], "where": "somewhere"}
    assert told == {
        "ours": {"passed": 0, "failed": 1, "skipped": 1, "failures": ["test_some.py::test_ours"]} | of,
        "paper_grid": {"passed": 2, "failed": 1, "skipped": 0, "failures": ["test_some.py::test_grid[0]"]} | of,
    }

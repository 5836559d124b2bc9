"""The report from a results folder of made-up rows: complete, self-contained, and the same when made twice."""

from __future__ import annotations

import json
import os
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
from claim_rows import frame, row
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tritonmoe_bench.experiments.analysis.compare import timed
from tritonmoe_bench.experiments.claims import CLAIMS, DISPUTED, Verdict
from tritonmoe_bench.experiments.reporting import again, context, headline, lead, points, render, section
from tritonmoe_bench.experiments.reporting import tables as report_tables
from tritonmoe_bench.experiments.reporting.sections import hazards
from tritonmoe_bench.experiments.reporting.texts import say
from tritonmoe_bench.experiments.table import store

ROOT = Path(__file__).resolve().parents[2]
DEVICE = make_results.DEVICE
IDS, DISPUTED_IDS = (
    [claim["id"] for claim in yaml.safe_load(path.read_text(encoding="utf-8"))] for path in (CLAIMS, DISPUTED)
)
FIGURES = ("throughput", "headline", "skew")


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


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with results/, plots/figures/ and README.md, and the report in it."""
    root = tmp_path_factory.mktemp("checkout")
    make_results.make_results(root / "results")
    figures = root / "plots" / "figures" / DEVICE
    figures.mkdir(parents=True)
    for name in FIGURES:
        facts = PngInfo()  # as plots/draw.py writes them
        facts.add_text("Title", f"Title of {name}")
        facts.add_text("Description", f"What {name} says")
        facts.add_text("Source", "throughput")
        Image.new("RGB", (40, 20), "white").save(figures / f"{name}.png", pnginfo=facts)
    (root / "README.md").write_text(f"# Title\n\n{render.BEGIN}\nold\n{render.END}\n\nkept\n", encoding="utf-8")
    render.write_report(root / "results", figures.parent, DEVICE, root / "README.md")
    return root


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
        assert re.fullmatch(r"(`make \w+( STUDY=\w+)?` \(\d+ min( on two CPU cores)?\), )*then `make report`", line)
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
    assert sorted(Path(path).stem for _, path in pictures) == sorted(FIGURES)
    assert all(says == f"What {Path(path).stem} says" for says, path in pictures)
    assert all((written / "results" / path).exists() for _, path in pictures)
    assert all(f'<a id="figure-{name}"></a>' in text for name in FIGURES)


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


def test_ratio_table_is_that_of_the_rows_beside_the_published_one(written):
    rows = pd.read_csv(written / "results" / DEVICE / "throughput.csv")
    table = report_tables.ratio_table(rows)
    line = next(dict(zip(table.header, row)) for row in table.rows if row[:3] == ["Mixtral-8x7B", "32", "fp16"])
    case = rows[(rows["model"] == "mixtral") & (rows["dtype"] == "fp16") & (rows["tokens"] == 32)]
    eager = case[case["launch"] == "eager"].set_index("implementation")["p50_us"]
    assert line["published"] == "1.31"
    assert line["paper_fused / sparse, eager"].lstrip("≈") == f"{eager['megablocks_sparse'] / eager['paper_fused']:.2f}"
    assert line["paper_fused / grouped_cublas, eager"] == "unsupported"
    best = case[case["implementation"] == "paper_fused_graph"]["p50_us"].min()
    assert line["paper_fused_graph / sparse, best"].lstrip("≈") == f"{eager['megablocks_sparse'] / best:.2f}"


def test_a_share_of_a_limit_that_varied_while_it_was_timed_is_marked(written):
    rows = pd.read_csv(written / "results" / DEVICE / "headline.csv")

    def shares(frame):
        return [line[6] for line in headline.field_table({DEVICE: frame}).rows]

    assert not any("≈" in share for share in shares(rows))
    of_limit = (rows["implementation"] == "stream") & (rows["model"] == "mixtral") & (rows["tokens"] == 32)
    varied = rows.assign(p80_us=rows["p80_us"].where(~of_limit, 1.2 * rows["p50_us"]))
    assert sum("≈" in share for share in shares(varied)) == rows.loc[of_limit, "case_hash"].nunique()


def test_field_table_and_its_means_are_those_of_the_rows(written):
    rows = pd.read_csv(written / "results" / DEVICE / "headline.csv")
    best = rows[rows["p50_us"].notna()].groupby(["case_hash", "implementation"])["p50_us"].min().unstack()
    peers = ["torch_grouped_mm", "megablocks_sparse", "megablocks_grouped_cutlass", "vllm"]
    over_peers = best[peers].min(axis=1) / best["fast"]
    table = headline.field_table({DEVICE: rows})
    assert sum(line[0] == "Mixtral-8x7B" for line in table.rows) == 10
    case = rows[(rows["model"] == "mixtral") & (rows["tokens"] == 32) & (rows["skew"] == 1.2)]
    line = next(cells for cells in table.rows if cells[:3] == ["Mixtral-8x7B", "32", "1.2"])
    one = best.loc[case["case_hash"].iloc[0]]
    assert line[3:6] == ["bf16", DEVICE, f"{one['fast']:.0f}"]
    assert line[6] == f"{100 * case['limit_us'].iloc[0] / one['fast']:.0f} %"
    assert line[7:9] == [one[peers].idxmin(), f"{one[peers].min():.0f}"]
    assert line[9].lstrip("≈") == f"{one[peers].min() / one['fast']:.2f}"
    assert line[11].lstrip("≈") == f"{one[peers[1:3]].min() / one['fast']:.2f}"
    first, *_, last = headline.field_sentences(rows)
    assert f"fast runs at {over_peers.prod() ** (1 / len(over_peers)):.2f}x the speed" in first
    ahead = best["fast"] <= best.drop(columns=["fast", "stream"]).min(axis=1)
    assert f"at {ahead.sum()} of {len(best)} points" in last
    mean = over_peers.prod() ** (1 / len(over_peers))
    assert f"by {100 * (mean - 1):.0f} % in the mean" in (written / "README.md").read_text(encoding="utf-8")
    assert last.split(";")[0] in (written / "results" / "REPORT.md").read_text(encoding="utf-8")


def test_whole_models_are_given_with_what_of_the_gain_arrives(written):
    rows = timed(store.read(written / "results" / DEVICE / "endtoend.csv"), "best")
    text = (written / "results" / "REPORT.md").read_text(encoding="utf-8")
    section = text.split("## Whole models")[1].split("\n## ")[0]
    assert "### OLMoE-1B-7B" in section
    here = rows[(rows["model"] == "olmoe_1b_7b") & (rows["tokens"] == 8)].set_index("implementation")
    own, other = here.loc["fast"], here.drop(index="fast").sort_values("p50_us").iloc[0]
    [line] = [line for line in section.split("### OLMoE-1B-7B")[1].splitlines() if line.startswith("| 8 |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert f"{own['tokens_per_s']:.0f}" in cells
    assert cells[-3:] == [
        f"{other['experts_us'] / own['experts_us']:.2f}", f"{other['p50_us'] / own['p50_us']:.2f}",
        f"{100 * own['experts_share']:.0f} %",
    ]  # fmt: skip


def test_where_fast_is_not_the_fastest_is_named(written):
    rows = pd.read_csv(written / "results" / DEVICE / "headline.csv")
    slow = (
        (rows["implementation"] == "fast") & (rows["tokens"] == 8) & (rows["model"] == "mixtral") & (rows["skew"] == 0)
    )
    rows.loc[slow, ["p50_us", "p20_us", "p80_us"]] *= 10
    assert "Mixtral-8x7B, 8 tokens, skew 0: " in headline.field_sentences(rows)[-1]
    assert headline.field_sentences(rows[rows["implementation"] != "fast"]) == []


def test_native_layers_have_a_sentence_and_a_table():
    point = {"study": "native", "dtype": "bf16", "layer": "native", "quant": "none"}
    gatings = {"mixtral": "softmax_renorm", "deepseek_v3": "deepseek_v3"}
    rows = frame([
        row(system, latency, model=model, gating=gating, **point)
        for model, gating in gatings.items() for system, latency in (("fast", 100.0), ("vllm", 150.0))
    ])  # fmt: skip
    rows = rows.assign(stream_us=50.0)
    assert "fast runs at 1.50x" in headline.native_sentence(rows)
    table = headline.native_table({"gpu": rows})
    assert [(line[0], line[4]) for line in table.rows] == [
        ("Mixtral-8x7B", "softmax_renorm"), ("DeepSeek-V3", "deepseek_v3"),
    ]  # fmt: skip
    assert [line[-3:] for line in table.rows] == [["vllm", "150", "1.50"]] * 2
    assert table.header[-1] == "fast / best peer"
    assert headline.native_table({"gpu": rows.assign(layer="plain")}).rows == []
    assert headline.native_sentence(rows[rows["implementation"] != "fast"]) == ""


def test_the_price_of_invariance_is_that_of_its_rows(written):
    rows = pd.read_csv(written / "results" / DEVICE / "headline.csv")
    own = rows[rows["implementation"] == "fast"]
    slower = own.assign(
        implementation="fast_invariant", **{name: 1.25 * own[name] for name in ("p50_us", "p20_us", "p80_us")}
    )
    assert len(lead.standings(rows)["invariant"]) == 0
    standings = lead.standings(pd.concat([rows, slower]))
    points = own["case_hash"].nunique()
    assert say("answer.j2", "invariance", standings=standings).endswith(
        f"a layer takes 1.25 times as long: the median of {points} points is 1.25."
    )
    assert "invariant=True" not in (written / "README.md").read_text(encoding="utf-8").split("claims:end")[0]


def test_leads_are_those_of_the_rows_and_ties_are_called_ties(written):
    rows = pd.read_csv(written / "results" / DEVICE / "headline.csv")
    rows.loc[rows["implementation"] == "fast", ["p50_us", "p20_us", "p80_us"]] /= 2
    best = rows[rows["p50_us"].notna()].groupby(["model", "tokens", "skew", "implementation"])["p50_us"].min().unstack()
    peers = ["torch_grouped_mm", "megablocks_sparse", "megablocks_grouped_cutlass", "vllm"]
    over = best[peers].min(axis=1) / best["fast"]
    table = lead.lead_table(rows)
    assert [line[0] for line in table.rows] == ["1", "8", "32", "128", "512"]
    line = dict(zip(table.header, table.rows[2]))
    percents = [f"{100 * (ratio - 1):+.0f}" for ratio in sorted(over.loc["mixtral", 32])]
    assert line["Mixtral-8x7B"] == " to ".join(dict.fromkeys(percents)) + " %"
    tied = lead.lead_table(rows.assign(apart=100.0))
    assert {cell for line in tied.rows for cell in line[1:-1]} == {"tie"}
    standings = lead.standings(rows.assign(apart=1.022))
    assert standings["noise"].tolist() == pytest.approx([2.2] * standings["every"].points)
    assert standings["several"].points == (over.index.get_level_values("tokens") > 1).sum()
    assert lead.standings(rows[rows["implementation"] != "fast"]) == {}
    assert lead.lead_table(rows[rows["implementation"] == "fast"]) is None


def test_each_weight_format_and_the_own_layers_stand_by_themselves():
    rows = frame([
        *(row(name, us, study="quant", quant=quant) for name, us, quant in (
            ("fast", 100.0, "int4"), ("vllm", 150.0, "int4"), ("fast", 100.0, "none"), ("vllm", 90.0, "none"),
            ("fast", 100.0, "mxfp4"))),
    ])  # fmt: skip
    native = frame([row("fast", 100.0, quant="none", layer="native"), row("vllm", 80.0, quant="none", layer="native")])
    served = lead.as_served(rows.assign(case_hash=rows["quant"]), native)
    assert {name: (stands.points, round(stands.mean, 2), stands.ahead) for name, stands in served.items()} == {
        "int4, plain layers": (1, 1.5, 1), "16 bits, own layers": (1, 0.8, 0),
    }  # fmt: skip
    assert lead.as_served(rows.head(0), native.head(0)) == {}
    assert "| int4, plain layers | 1 | 1, 0, 0 | 50 % |" in say("answer.j2", "as_served", served=served)


def test_every_point_of_a_study_names_the_fastest_and_leaves_out_the_limit(written):
    rows = pd.read_csv(written / "results" / DEVICE / "throughput.csv")
    table = points.point_table("throughput", {DEVICE: rows, "other": rows.assign(p50_us=2 * rows["p50_us"])})
    assert len(table.rows) == 2 * rows["case_hash"].nunique()
    assert "stream" not in table.header
    best = rows[rows["status"] == "ok"].groupby(["case_hash", "implementation"])["p50_us"].min().unstack()
    best = best.drop(columns="stream")
    case = rows.query("model == 'mixtral' and dtype == 'bf16' and tokens == 1")["case_hash"].iloc[0]
    where = {"model": "Mixtral-8x7B", "tokens": "1", "dtype": "bf16", "GPU": DEVICE}
    [line] = [
        line for line in (dict(zip(table.header, cells)) for cells in table.rows)
        if all(line[name] == value for name, value in where.items())
    ]  # fmt: skip
    assert line["fastest"] == best.loc[case].idxmin()
    for system, p50 in best.loc[case].dropna().items():
        assert float(re.sub("[≈‼ e]", "", line[system])) == pytest.approx(p50, rel=0.01)


def test_the_minutes_of_a_command_leave_out_the_breaks_of_its_run():
    stamps = ["2026-01-01T00:00:00Z", "2026-01-01T00:02:00Z", "2026-01-01T09:00:00Z", "2026-01-01T09:01:00Z"]
    frames = {"traffic": pd.DataFrame({"timestamp_utc": stamps})}
    files = ["traffic.csv", "tests-interpreter.json", "tests-gpu.json"]
    assert again.command(files, frames) == [("make sweep STUDY=counters", 3.0), ("make test", 8)]


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
    shutil.copytree(written / "results" / DEVICE, results / DEVICE)
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


@pytest.mark.parametrize("name", ["tests-here.json", "portability.csv"])
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
        "outcomes.stamp = lambda: {'commit': 'c0ffee', 'when_utc': 'today'}\n"
        "@pytest.mark.paper_grid\n@pytest.mark.parametrize('n', range(3))\ndef test_grid(n): assert n\n"
        "@pytest.fixture\ndef broken():\n    yield\n    raise ValueError\n"
        "def test_ours(broken): assert False\n"
        "def test_skipped(): pytest.skip('why')\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    path = tmp_path / "results" / "tests-somewhere.json"
    plain = {name: value for name, value in os.environ.items() if name != outcomes.SWITCH}
    told = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env=plain, encoding="utf-8", errors="replace"
    ).stdout
    assert "the paper's cases on somewhere: 2 passed, 1 failed" in told
    assert "tests of our own on somewhere: 1 failed, 1 skipped" in told
    assert not path.exists()
    subprocess.run(command, capture_output=True, cwd=tmp_path, env=plain | {outcomes.SWITCH: "1"})
    of = {"where": "somewhere", "commit": "c0ffee", "when_utc": "today"}
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "ours": {"passed": 0, "failed": 1, "skipped": 1, "failures": ["test_some.py::test_ours"]} | of,
        "paper_grid": {"passed": 2, "failed": 1, "skipped": 0, "failures": ["test_some.py::test_grid[0]"]} | of,
    }

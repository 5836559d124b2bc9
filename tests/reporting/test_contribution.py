"""A GPU that nobody has heard of: its folder is packed without a trace of its machine, unpacked, and then shown."""

from __future__ import annotations

import json
import shutil
import socket
import zipfile
from pathlib import Path

import make_results
import pandas as pd
import pytest

from tritonmoe_bench.experiments import contribute
from tritonmoe_bench.experiments.analysis import choose
from tritonmoe_bench.experiments.reporting import contribution, render
from tritonmoe_bench.experiments.table import outcomes
from tritonmoe_bench.experiments.workload.arguments import read
from tritonmoe_bench.plots import draw

HOST, GPU = make_results.DEVICE, "acme-moe9000"
STUDIES = ("headline", "throughput")


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """Results of two GPUs, the second one unpacked from what `contribute` wrote on its machine."""
    root = tmp_path_factory.mktemp("two")
    make_results.make_results(root / "results")
    away = root / "away" / "results" / GPU
    away.mkdir(parents=True)
    (away / "archive").mkdir()
    for study in STUDIES:
        rows = pd.read_csv(root / "results" / HOST / f"{study}.csv", dtype="string").assign(device=GPU)
        failed = rows["status"] != "ok"
        rows.loc[failed, "reason"] = f"OSError: /home/somebody/secret/libx.so on {socket.gethostname()}"
        rows.to_csv(away / f"{study}.csv", index=False)
        shutil.copy(root / "results" / HOST / f"{study}.json", away)
        shutil.copy(away / f"{study}.csv", away / "archive")
    told = outcomes.record({"a": "passed"}, GPU)
    (away.parent / f"paper-tests-{GPU}.json").write_text(json.dumps(told), encoding="utf-8")
    (away.parent / f"tests-{HOST}.json").write_text("{}", encoding="utf-8")
    sent = root / "sent.zip"
    assert contribute.main([f"device={GPU}", f"results={away.parent}", f"out={sent}"]) == 0
    with zipfile.ZipFile(sent) as archive:
        archive.extractall(root / "results")
    return root


def test_what_is_sent_has_rows_and_provenance_and_nothing_of_the_machine(joined):
    names = sorted(path.name for path in (joined / "results" / GPU).iterdir())
    assert names == sorted(f"{study}.{ending}" for study in STUDIES for ending in ("csv", "json"))
    assert json.loads((joined / "results" / f"paper-tests-{GPU}.json").read_text(encoding="utf-8"))["passed"] == 1
    assert not (joined / "results" / f"tests-{HOST}.json").exists()
    text = "".join(path.read_text(encoding="utf-8") for path in (joined / "results" / GPU).iterdir())
    assert ".../libx.so" in text
    assert "somebody" not in text
    assert "/home" not in text
    before = pd.read_csv(joined / "away" / "results" / GPU / "headline.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(joined / "results" / GPU / "headline.csv").drop(columns="reason"), before.drop(columns="reason")
    )


def test_the_same_rows_give_the_same_file(joined, tmp_path):
    for name in ("one.zip", "two.zip"):
        contribution.pack(joined / "results" / GPU, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with pytest.raises(FileNotFoundError, match="no rows to send"):
        contribution.pack(tmp_path, tmp_path / "none.zip")


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("No module at /opt/a b", "No module at /opt/a b".replace("/opt/a", ".../a")),
        ("in ~/work/x.py: failed", "in .../x.py: failed"),
        ("see https://github.com/owner/name and kernels/fast/layer.py", None),
        ("64 x 64 / 32, 1/2", None),
    ],
)
def test_paths_go_and_everything_else_stays(text, sent):
    assert contribution.scrubbed(text)[0] == (sent or text)


def test_it_is_in_the_report_the_figures_and_the_answer_of_choose(joined):
    folders = [f"results={joined / 'results'}", f"out={joined / 'figures'}"]
    assert draw.main([f"device={GPU}", "only=headline", "dpi=40", *folders]) == 0
    render.write_report(joined / "results", joined / "figures", HOST, joined / "none.md")
    text = (joined / "results" / "REPORT.md").read_text(encoding="utf-8")
    assert f"| claim | {HOST} | {GPU} |" in text
    assert f"- {GPU}: fast runs at " in text
    beside = text.split(f"### Does the order of the systems carry over to {GPU}?")[1].split("\n### ")[0]
    assert "on both, or a tie with it, at 40 (100 %)" in beside  # its rows are those of the other one
    assert f"| system | points | {HOST} | {GPU} |" in beside
    field = text.split("\n## fast against the field\n")[1].split("\n## ")[0]
    assert field.count(f"| {GPU} |") == field.count(f"| {HOST} |") > 0
    figures = text.split("\n## Figures\n")[1].split("\n## ")[0]
    assert f"(../figures/{GPU}/headline.png)" in figures
    assert f". {GPU}, from headline.csv*" in figures
    question = ["model=mixtral", "tokens=32", f"device={GPU}", f"results={joined / 'results'}"]
    assert f" on {GPU}\n" in choose.answer(read(choose.Question, question))

"""The engineer's question, asked of made-up rows: right system, right row, ratios inside one run, one clear error."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest
from asking import DEVICE, ask

from tritonmoe_bench.experiments.analysis import choose, choose_text
from tritonmoe_bench.experiments.analysis.names import in_order
from tritonmoe_bench.experiments.workload.arguments import PlanError


def point(results, study, **where):
    rows = pd.read_csv(results / DEVICE / f"{study}.csv")
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def table(text):
    """Cells by system, of all tables of an answer."""
    lines = text.splitlines()
    return {
        line.split()[0]: line
        for start in [index for index, line in enumerate(lines) if line.split()[:1] == ["system"]]
        for line in lines[start + 1 : lines.index("", start) if "" in lines[start:] else len(lines)]
    }


def test_the_fastest_system_its_row_and_the_runners_up_are_those_of_the_csv(results, tmp_path):
    (tmp_path / DEVICE).mkdir()
    shutil.copy(results / DEVICE / "throughput.csv", tmp_path / DEVICE)
    text = ask(tmp_path, "model=mixtral", "tokens=32")
    rows = point(results, "throughput", model="mixtral", tokens=32, dtype="bf16", skew=0.0)
    best = rows[(rows["status"] == "ok") & (rows["implementation"] != "stream")].sort_values("p50_us")
    best = best.drop_duplicates("implementation").reset_index(drop=True)
    first, second = best.iloc[0], best.iloc[3]
    assert f"Fastest of {len(best)}: {first['implementation']}, {first['p50_us']:.1f} µs, in a CUDA graph" in text
    assert f"throughput.csv, run {first['run_id']}, case {first['case_hash']}" in text
    cells = table(text)
    assert list(cells)[: len(best)] == list(best["implementation"])
    assert f"{second['p50_us'] / first['p50_us']:.2f} (" in cells[second["implementation"]]
    assert f"{second['workspace_bytes'] / 2**20:.1f} MiB" in cells[second["implementation"]]
    assert f"{100 * first['limit_us'] / first['p50_us']:.0f} %" in cells[first["implementation"]]
    assert f"Limit {first['limit_us']:.1f} µs" in text
    assert "stream" not in cells


def test_what_is_not_timed_is_listed_with_its_reason_in_one_line(results):
    text = ask(results, "model=mixtral", "tokens=32", "dtype=fp16")
    last = text.split("Not timed at this point:\n")[1].splitlines()
    assert "  megablocks_grouped_cublas: unsupported: grouped_gemm multiplies bf16 only (synthetic)" in last
    graphs = text.split("In no CUDA graph:\n")[1].split("\n\n")[0].splitlines()
    assert any(line.startswith("  paper_fused: unsupported: the host waits") for line in graphs)
    listed = [line.split(":")[0].strip() for line in [*graphs, *last]]
    assert len(listed) == len(set(listed))


def test_another_run_adds_its_systems_with_ratios_of_its_own(results, tmp_path):
    folder = tmp_path / DEVICE
    folder.mkdir()
    for name in ("throughput", "headline"):
        rows = pd.read_csv(results / DEVICE / f"{name}.csv", dtype="string")
        rows = rows[rows["implementation"] != ("torch_grouped_mm" if name == "throughput" else "")]
        if name == "headline":  # a slower card: only inside the run do its ratios mean anything
            for column in ("p50_us", "p20_us", "p80_us", "limit_us", "stream_us"):
                rows[column] = (rows[column].astype("Float64") * 10).astype("string")
            rows["timestamp_utc"] = "2020-01-01T00:00:00Z"
        rows.to_csv(folder / f"{name}.csv", index=False)
    text = ask(tmp_path, "model=mixtral", "tokens=32")
    first, second = text.split("headline.csv")
    assert "torch_grouped_mm " not in first
    assert re.search(r"Further systems, of another run: 1 of its \d+; the fastest there: \w+, [\d.]+ µs", text)
    own = {line.split()[0] for line in second.splitlines() if "graph" in line and "MiB" in line}
    rows = point(tmp_path, "headline", model="mixtral", tokens=32, skew=0.0, status="ok", launch="graph")
    p50 = rows.set_index("implementation")["p50_us"]
    assert own == {"torch_grouped_mm", p50.drop("stream").idxmin()}
    assert f"{p50['torch_grouped_mm'] / p50.drop('stream').min():.2f} (" in second


def test_a_tie_within_the_noise_is_called_the_same(results, tmp_path):
    rows = pd.read_csv(results / DEVICE / "headline.csv", dtype="string")
    fast = rows["implementation"].eq("fast") & rows["launch"].eq("graph")
    twin = rows[fast].copy()
    twin["implementation"] = "vllm"
    twin["p50_us"] = (twin["p50_us"].astype("Float64") * 1.004).astype("string")
    (tmp_path / DEVICE).mkdir()
    others = rows[~rows["implementation"].isin(["vllm"])]
    pd.concat([others, twin]).to_csv(tmp_path / DEVICE / "headline.csv", index=False)
    text = ask(tmp_path, "model=mixtral", "tokens=32")
    assert "the same within the noise: vllm" in text
    assert re.search(r"vllm .* ≈1\.00 ", table(text)["vllm"])


def test_equal_latencies_stand_in_the_order_of_all_figures(results):
    row = point(results, "headline", implementation="fast", launch="graph", status="ok").head(1)
    rows = pd.concat([row.assign(implementation=f"system{place}", p50_us=1.0 + place % 2) for place in range(40)])
    systems = choose_text._systems(rows)
    assert systems["p50_us"].is_monotonic_increasing
    for _, equal in systems.groupby("p50_us"):
        assert equal["implementation"].tolist() == in_order(equal["implementation"])


def test_the_published_format_is_asked_for_as_of_a_sweep(results):
    asked = ["model=mixtral", "tokens=32", "layer=native"]
    assert ask(results, *asked, "quant=native") == ask(results, *asked)
    packed = [ask(results, "model=deepseek_v3", "tokens=32", f"quant={name}") for name in ("native", "fp8_block")]
    assert packed[0] == packed[1]
    assert ", fp8_block, on " in packed[0].splitlines()[0]


def test_the_models_own_shapes_are_named_before_others(results):
    with pytest.raises(PlanError, match=re.escape("measured shapes: deepseek_v3 (256 experts, top-8, 7168 x 2048), ")):
        ask(results, "model=deepseek_v3", "tp=4", "tokens=8")


@pytest.mark.parametrize(("newer", "lost", "first"), [("skew", "", "skew"), ("experts", "", "experts"),
                                                     ("experts", "vllm", "skew")])  # fmt: skip
def test_the_run_with_the_most_peers_answers_and_of_equal_ones_the_newest(results, tmp_path, newer, lost, first):
    (tmp_path / DEVICE).mkdir()
    for name in ("skew", "experts"):
        rows = pd.read_csv(results / DEVICE / "headline.csv", dtype="string").assign(study=name, run_id=name)
        rows = rows.assign(timestamp_utc=f"2026-02-0{2 if name == newer else 1}T00:00:00Z")
        rows = rows[rows["implementation"] != (lost if name == newer else "")]
        rows.to_csv(tmp_path / DEVICE / f"{name}.csv", index=False)
    text = ask(tmp_path, "model=mixtral", "tokens=32")
    assert f"{first}.csv, run {first}" in text.split("From ")[1]


def test_the_row_says_its_version_and_how_old_it_is(results, monkeypatch):
    monkeypatch.setattr(choose_text, "commits_since", lambda commit: 12)
    text = ask(results, "model=mixtral", "tokens=32")
    assert re.search(r", vllm [\w.+]+, commit \w+, 12 commits on kernels and measurement ago\n", text)
    monkeypatch.setattr(choose_text, "commits_since", lambda commit: None)
    assert re.search(r", vllm [\w.+]+, commit \w+\n", ask(results, "model=mixtral", "tokens=32"))


def test_another_word_for_a_dtype_is_understood(results):
    assert ask(results, "model=mixtral", "tokens=32", "dtype=bfloat16") == ask(results, "model=mixtral", "tokens=32")
    assert ask(results, "model=mixtral", "tokens=32", "dtype=float16").splitlines()[0].count("fp16") == 1


def test_a_label_of_measured_rows_takes_sizes_too(results, tmp_path):
    shutil.copytree(results / DEVICE, tmp_path / DEVICE)
    rows = pd.read_csv(tmp_path / DEVICE / "skew.csv", dtype="string").assign(model="mine")
    rows.to_csv(tmp_path / DEVICE / "skew.csv", index=False)
    experts = sorted(map(int, rows["num_experts"].unique()))
    assert len(experts) > 2
    asked = ["model=mine", "tokens=32"]
    assert f"({experts[1]} experts" in ask(tmp_path, *asked, f"num_experts={experts[1]}").splitlines()[0]
    for more, named in (
        ("num_experts=7", f"num_experts=7: not measured of mine; measured: {', '.join(map(str, experts))}"),
        ("tp=2", "model=mine: a label of measured rows, which tp=... and ep=... cannot cut"),
    ):
        with pytest.raises(PlanError, match=re.escape(named)):
            ask(tmp_path, *asked, more)


def test_no_more_than_the_nearest_shapes_are_named(results):
    with pytest.raises(PlanError) as error:
        ask(results, "model=kimi_k2", "tokens=4")
    named = str(error.value).split("measured shapes: ")[1].split("; on that GPU")[0]
    assert named.split("), ")[0] == "deepseek_v3 (256 experts, top-8, 7168 x 2048"
    assert named.count("experts") == choose.NEAREST


def test_help_tells_which_shards_were_measured(monkeypatch, results, tmp_path):
    monkeypatch.setattr(choose, "ROOT", tmp_path)
    shutil.copytree(results, tmp_path / "results")
    assert choose.measured_shards()[0].startswith("none yet")
    path = tmp_path / "results" / DEVICE / "throughput.csv"
    rows = pd.read_csv(path, dtype="string")
    rows.assign(model=rows["model"].where(rows["model"] != "mixtral", "mixtral tp8")).to_csv(path, index=False)
    assert choose.measured_shards() == ["mixtral tp8"]
    shutil.rmtree(tmp_path / "results")
    assert choose.measured_shards() == ["none yet"]


def test_a_models_own_layer_is_answered_by_rows_of_that_layer(results):
    text = ask(results, "model=mixtral", "tokens=32", "layer=native")
    assert "bf16, softmax_renorm, the model's own layer, on" in text
    assert "native.csv, run" in text
    assert "throughput.csv" not in text
    assert "native.csv" not in ask(results, "model=mixtral", "tokens=32")
    far = ask(results, "model=mixtral", "tokens=4", "layer=native")
    assert "`python experiments/sweep.py model=mixtral tokens=4 layer=native` measures what is asked" in far


def test_a_shape_of_the_experts_study_and_a_skew_are_found(results):
    text = ask(results, "model=qwen2_paper", "num_experts=128", "top_k=8", "ffn_dim=1280", "tokens=32")
    assert text.startswith("qwen2_paper (128 experts, top-8, 3584 x 1280), 32 tokens")
    assert "experts.csv" in text
    assert "skew.csv" in ask(results, "model=qwen2_paper", "tokens=32", "skew=0.4")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=kimi_k2", "tokens=1"], "`python experiments/sweep.py model=kimi_k2 tokens=1` measures it"),
        (
            ["model=mixtral", "tp=8", "tokens=1"],
            f"no shard of the shape mixtral tp8 (8 experts, top-2, 4096 x 1792) was measured on {DEVICE}; nearest of",
        ),
        (
            ["model=mixtral", "tp=8", "tokens=1"],
            "on that GPU `python experiments/sweep.py model=mixtral tp=8 tokens=1` measures it",
        ),
        (
            ["model=mixtral", "ffn_dim=7168", "ep=2", "tokens=1", "skew=1.2", "dtype=fp16"],
            "sweep.py model=mixtral model.ffn_dim=7168 ep=2 tokens=1 skew=1.2 dtype=fp16`",
        ),
        (
            ["model=mixtral", "ep=8", "tokens=1"],
            "leaves 1 of 8 experts of mixtral on a GPU, fewer than top_k=2; measured of "
            "it: mixtral (8 experts, top-2, 4096 x 14336)",
        ),
        (["model=mixtral", "tp=3", "tokens=1"], "must divide ffn_dim=14336 of mixtral; measured of it: mixtral (8"),
        (["model=mixtrl", "tokens=1", "quant=native"], "quant=native: model=mixtrl is no name of conf/model"),
        (["model=mixtrl", "tokens=1"], "did you mean mixtral?"),
        (["model=mixtral", "tokens=1", "skew=9"], "skew=9.0: allowed are 0 (uniform) to 8"),
        (["model=mixtral", "tokens=1", "dtype=fp32"], "dtype=fp32: allowed are bf16, fp16"),
        (
            ["model=mixtral", "tokens=1", "gating=sigmoid"],
            "ask for gating=softmax, which was measured; on that GPU `python experiments/sweep.py",
        ),
        (["model=mixtral", "tokens=1", "gating=hard"], "gating=hard: allowed are softmax"),
        (
            ["model=mixtral", "tokens=1", "quant=mxfp4"],
            "quant=mxfp4: not measured for this shape; ask for quant=none, which",
        ),
        (
            ["model=deepseek_v3", "tokens=1", "layer=native"],
            "layer=native: not measured for this shape; ask for layer=plain",
        ),
        (["model=mixtral", "tokens=1", "layer=own"], "layer=own: allowed are plain, native"),
        (["model=mixtral", "tokens=100000000"], "tokens=100000000: allowed are 1 to 8192"),
        (["model=mixtral", "tokens=1", "top_k=99"], "top_k=99: allowed are 1 to num_experts=8"),
        (["model=mixtral", "tokens=1", "num_experts=9999"], "num_experts=9999: at most hidden_dim=4096"),
        (["model=mixtral", "tokens=1", "device=a100"], f"folders with some for: {DEVICE}"),
        (["model=mixtral", "tokens=1", "TP=1", "tp=8"], "tp=8: tp=... is given twice"),
        (["model=mixtral"], "tokens=... is needed"),
        (["tokens=1"], "model=... is needed"),
        (["model=mixtral", "tokens=few"], "a whole number"),
        (["model=mixtral", "tokns=1"], "tokns=1: did you mean tokens?"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_error(results, arguments, named):
    with pytest.raises(PlanError) as error:
        ask(results, *arguments)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_latencies_are_not_offered(results, tmp_path):
    shutil.copytree(results / DEVICE, tmp_path / DEVICE)
    (tmp_path / "interpreter").mkdir()
    shutil.copy(results / DEVICE / "traffic.csv", tmp_path / "interpreter")
    with pytest.raises(PlanError, match=f"device=interpreter: .* for: {DEVICE}$"):
        ask(tmp_path, "model=mixtral", "tokens=32", "device=interpreter")


def test_sizes_are_whole_whatever_the_csv(results, tmp_path):
    rows = pd.read_csv(results / DEVICE / "headline.csv", dtype="string")
    rows.loc[len(rows) - 1, ["num_experts", "top_k", "hidden_dim", "ffn_dim", "tokens"]] = pd.NA
    (tmp_path / DEVICE).mkdir()
    rows.to_csv(tmp_path / DEVICE / "headline.csv", index=False)
    text = ask(tmp_path, "model=mixtral", "tokens=33")
    assert text.startswith("mixtral (8 experts, top-2, 4096 x 14336), 33 tokens, skew 0")
    assert re.search(r"measured are [\d, ]+$", text.splitlines()[1])
    with pytest.raises(PlanError) as error:
        ask(tmp_path, "model=kimi_k2", "tokens=1")
    assert ".0" not in str(error.value)


@pytest.mark.parametrize(("p80", "told"), [(1.21, True), (1.02, False)])
def test_a_share_above_the_limit_is_explained_where_the_limit_varied(results, tmp_path, p80, told):
    rows = pd.read_csv(results / DEVICE / "headline.csv")
    best = point(results, "headline", model="mixtral", tokens=32, skew=0.0, status="ok").sort_values("p50_us")
    best = best[best["implementation"] != "stream"].iloc[0]
    here = rows["case_hash"] == best["case_hash"]
    rows.loc[here, ["limit_us", "stream_us"]] = 1.02 * best["p50_us"]
    graph = here & rows["implementation"].eq("stream") & rows["launch"].eq("graph")
    rows.loc[graph, ["p50_us", "p20_us", "p80_us"]] = [[scale * best["p50_us"] for scale in (1.02, 1, p80)]]
    (tmp_path / DEVICE).mkdir()
    rows.to_csv(tmp_path / DEVICE / "headline.csv", index=False)
    text = ask(tmp_path, "model=mixtral", "tokens=32")
    assert "102 %" in table(text)[best["implementation"]]
    assert ("varied by 21 % while it was timed" in text) == told

"""The numbers of the report are those of the made-up rows that it is made from."""

from __future__ import annotations

import re
from dataclasses import replace

import make_results
import pandas as pd
import pytest
from claim_rows import frame, row

from tritonmoe_bench.experiments.analysis import age
from tritonmoe_bench.experiments.analysis.compare import timed
from tritonmoe_bench.experiments.reporting import again, headline, lead, points
from tritonmoe_bench.experiments.reporting import tables as report_tables
from tritonmoe_bench.experiments.reporting.texts import say
from tritonmoe_bench.experiments.table import store

DEVICE = make_results.DEVICE


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
    assert f"Mean lead {100 * (mean - 1):.0f} %" in (written / "README.md").read_text(encoding="utf-8")
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


def test_the_lead_without_cuda_graphs_says_where_it_is_from(written):
    standings = lead.standings(pd.read_csv(written / "results" / DEVICE / "headline.csv"))
    every = standings["every"]

    def told(eager, again):
        numbers = {"standings": standings | {"eager": eager}, "eager_again": again}
        return say("answer.j2", "fastest", device=DEVICE, sustained=None, older=[], **numbers)

    percent, fewer = f"{100 * (every.mean - 1):.0f} %", replace(every, points=every.points - 1)
    assert "CUDA graphs" not in told(None, None)
    assert f"{percent} without CUDA graphs on either side." in told(every, None)
    assert f"over the {fewer.points} points where one host timed all systems." in told(fewer, None)
    assert f"({percent} in another study: such latencies are the host's)." in told(every, every)
    assert f"{percent} without CUDA graphs on either side, in another study, over its {every.points} points" in told(
        None, every
    )


def test_the_first_screen_says_that_its_rows_are_of_an_older_method(written):
    standings = lead.standings(pd.read_csv(written / "results" / DEVICE / "headline.csv"))
    older = [age.Older(("latency",), (1, 2), 3, ("headline",))]
    told = say(
        "answer.j2", "fastest", device=DEVICE, sustained=None, older=older, standings=standings, eager_again=None
    )
    assert "The rows are of an older version of how latency is measured (1 and 2, now 3)" in told


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
        f"It costs 25 % of time (median 25 %, {points} points)."
    )
    assert "invariant=True" not in (written / "README.md").read_text(encoding="utf-8").split("claims:end")[0]


def test_what_tiled_weights_give_is_that_of_their_rows(written):
    rows = pd.read_csv(written / "results" / DEVICE / "headline.csv")
    own = rows[rows["implementation"] == "fast"]
    faster = own.assign(
        implementation="fast_tiled", **{name: 0.8 * own[name] for name in ("p50_us", "p20_us", "p80_us")}
    )
    assert lead.standings(rows)["tiled"] is None
    assert len(lead.standings(rows)["tiled_gain"]) == 0
    standings = lead.standings(pd.concat([rows, faster]))
    assert standings["tiled"].mean == pytest.approx(1.25 * standings["every"].mean)
    assert standings["tiled"].points == standings["every"].points
    assert "`fast` runs at 1.25 times its speed with them" in say("answer.j2", "tiles", standings=standings)
    assert "`fast_tiled`" not in (written / "README.md").read_text(encoding="utf-8").split("claims:end")[0]


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
    shards = frame([row("fast", 100.0, study="shards"), row("vllm", 120.0, study="shards")])
    served = lead.as_served(rows.assign(case_hash=rows["quant"]), native, shards)
    assert {name: (stands.points, round(stands.mean, 2), stands.ahead) for name, (stands, _) in served.items()} == {
        "int4, plain layers": (1, 1.5, 1), "16 bits, own layers": (1, 0.8, 0),
        "16 bits, a GPU's shard (tp, ep)": (1, 1.2, 1),
    }  # fmt: skip
    assert lead.as_served(rows.head(0), native.head(0), shards.head(0)) == {}
    assert "| int4, plain layers | 1 | 1, 0, 0 | 50 % | vLLM |" in say("answer.j2", "as_served", served=served)


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


def test_the_minutes_of_a_command_leave_out_the_breaks_of_its_run_or_are_those_of_the_makefile(tmp_path, monkeypatch):
    stamps = ["2026-01-01T00:00:00Z", "2026-01-01T00:02:00Z", "2026-01-01T09:00:00Z", "2026-01-01T09:01:00Z"]
    frames = {"traffic": pd.DataFrame({"timestamp_utc": stamps})}
    files = [
        "traffic.csv",
        "tests-interpreter.json",
        "tests-gpu.json",
        "paper-tests-gpu.json",
        "portability_authors.csv",
    ]
    for target, keys, _ in again.TARGETS.values():
        assert again.minutes_of_help(target, keys) > 0
    assert again.minutes_of_help("portability", " CODE=authors") < again.minutes_of_help("portability")
    makefile = "test: .ready  ## every test (7 minutes on two cores)\nother: .ready  ## it (9 minutes on two cores)\n"
    makefile += "papertests: ## theirs (1 minute)\n"
    makefile += "portability: ## all (31 minutes on two cores); theirs with CODE=authors (8 minutes)\n"
    (tmp_path / "Makefile").write_text(makefile, encoding="utf-8")
    monkeypatch.setattr(again, "ROOT", tmp_path)
    assert [told[:2] for told in again.command(files, frames)] == [
        ("make sweep STUDY=counters FORCE=true", 3.0), ("make test", 7), ("make papertests", 1),
        ("make portability CODE=authors", 8),
    ]  # fmt: skip

"""Tensor- and expert-parallel shards: shapes of their own, under labels of their own, in plans, figures and tables."""

from __future__ import annotations

from pathlib import Path

import make_results
import pandas as pd
import pytest
from matplotlib import pyplot

from tritonmoe_bench.experiments.analysis import choose
from tritonmoe_bench.experiments.analysis.names import model_label, models_in_order
from tritonmoe_bench.experiments.analysis.results import Results
from tritonmoe_bench.experiments.reporting import tables
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.workload.arguments import read
from tritonmoe_bench.experiments.workload.config import GridConfig, PlanError, StudyConfig, SweepConfig, load_model
from tritonmoe_bench.plots.parts import registry

ROOT = Path(__file__).resolve().parents[2]


def plan(model="mixtral", **changes):
    study = StudyConfig(name="adhoc", grids=[GridConfig(models=["mixtral"], tokens=[1, 32])])
    return make_plan(SweepConfig(model=load_model(model), study=study, **changes), ["stream", "fast"])


def shapes(**changes):
    return {(case.model, case.num_experts, case.ffn_dim) for case in plan(**changes).cases}


def test_tp_divides_the_ffn_and_ep_the_experts():
    assert shapes(tp=8) == {("mixtral tp8", 8, 1792)}
    assert shapes(model="deepseek_v3", ep=8) == {("deepseek_v3 ep8", 32, 2048)}
    assert shapes(model="deepseek_v3", tp=2, ep=4) == {("deepseek_v3 tp2 ep4", 64, 1024)}
    assert shapes(tp=1, ep=1) == shapes() == {("mixtral", 8, 14336)}
    assert shapes(tp=[1, 2]) == {("mixtral", 8, 14336), ("mixtral tp2", 8, 7168)}


def test_a_shard_and_a_layer_of_its_shape_have_different_rows():
    own = {case.case_hash for case in plan(tp=8).cases}
    assert len(own) == 2
    assert not own & {case.case_hash for case in plan().cases}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 3}, "tp=3: must divide ffn_dim=14336 of mixtral"),
        ({"ep": 3}, "ep=3: must divide num_experts=8 of mixtral"),
        ({"tp": 0}, "tp=0: must divide ffn_dim=14336 of mixtral"),
        ({"tp": -2}, "tp=-2: must divide ffn_dim=14336 of mixtral"),
        ({"ep": 8}, "ep=8: leaves 1 of 8 experts of mixtral on a GPU, fewer than top_k=2"),
        ({"tp": "many"}, "tp=many: a whole number is needed, or a list such as tp=[..,..]"),
        ({"ep": 2.0}, "ep=2.0: a whole number is needed, or a list such as ep=[..,..]"),
    ],
)
def test_what_cannot_be_cut_is_one_clear_error(changes, message):
    with pytest.raises(PlanError) as error:
        plan(**changes)
    assert str(error.value) == message


def test_native_gating_keeps_its_groups():
    assert len(plan(model="deepseek_v3", ep=8, gating="native").cases) == 2


def test_labels_and_order_of_shards():
    assert model_label("mixtral tp8") == "Mixtral-8x7B tp8"
    assert model_label("unlisted ep2") == "unlisted ep2"
    names = ["zzz", "qwen2_paper", "mixtral tp8", "mixtral", "deepseek_v3 ep8"]
    assert models_in_order(names) == ["mixtral", "mixtral tp8", "qwen2_paper", "deepseek_v3 ep8", "zzz"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Results:
    """The made-up results with Mixtral's shard in place of Mixtral-8x22B."""
    root = tmp_path_factory.mktemp("results")
    folder = make_results.make_results(root)
    for study, replaced in (("throughput", "mixtral_8x22b"), ("headline", "qwen3_30b_a3b")):
        rows = pd.read_csv(folder / f"{study}.csv", dtype="string")
        shard = rows["model"] == replaced
        rows.loc[shard, ["model", "num_experts", "top_k", "hidden_dim", "ffn_dim"]] = [
            "mixtral tp8", "8", "2", "4096", "1792",
        ]  # fmt: skip
        rows.to_csv(folder / f"{study}.csv", index=False)
    return Results(root, folder.name)


def test_the_headline_has_a_panel_of_the_shard(sharded):
    figure = registry.figures()["headline"].draw(sharded)
    pyplot.close(figure)
    assert [axes.get_title() for axes in figure.axes][:2] == ["Mixtral-8x7B", "Mixtral-8x7B tp8"]


def test_published_numbers_are_for_the_whole_layer_alone(sharded):
    figure = registry.figures()["paper_ratios"].draw(sharded)
    pyplot.close(figure)
    assert not any("tp8" in axes.get_title() for axes in figure.axes)


def test_tables_and_choose_keep_the_shard_apart(sharded):
    rows = sharded.study("throughput").rows
    models = [line[0] for line in tables.ratio_table(rows).rows if line[2] == "bf16"]
    whole = max(place for place, model in enumerate(models) if model == "Mixtral-8x7B")
    assert models.index("Mixtral-8x7B tp8") == whole + 1
    question = ["model=mixtral", "tp=8", "tokens=32", f"results={sharded.root}"]
    text = choose.answer(read(choose.Question, question))
    assert text.startswith("mixtral tp8 (8 experts, top-2, 4096 x 1792), 32 tokens")
    assert choose.answer(read(choose.Question, ["model=mixtral tp8", *question[2:]])) == text

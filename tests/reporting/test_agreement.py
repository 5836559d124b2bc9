"""Orders of systems against the earlier measurement: pair by pair inside each, ties by the noise."""

import numpy as np
import pandas as pd
import pytest

from tritonmoe_bench.experiments.reporting import agreement
from tritonmoe_bench.experiments.workload.case import Case

CASE = Case("mixtral", 8, 2, 4096, 14336, 32)


def rows(p50, launch="graph", run="R"):
    """Rows of one point with p20 and p80 one percent apart from the median."""
    shape = {name: getattr(CASE, name) for name in (*agreement.SHAPE, "gating", "layer", "case_hash")}
    return pd.DataFrame([
        {**shape, "run_id": run, "implementation": name, "status": "ok", "launch": launch, "p50_us": us,
         "p20_us": 0.99 * us, "p80_us": 1.01 * us}
        for name, us in p50.items()
    ])  # fmt: skip


def reference(p50):
    shape = {name: getattr(CASE, name) for name in agreement.SHAPE}
    return pd.DataFrame([{**shape, "implementation": name, "p50_us": us} for name, us in p50.items()])


@pytest.mark.parametrize(
    ("there", "here", "noise", "verdict"),
    [
        ((100, 200), (50, 60), 0.0, "same order"),
        ((100, 200), (60, 50), 0.0, "other order"),
        ((100, 200), (50.5, 50), 0.0, "within noise"),
        ((100, 104), (60, 50), 0.05, "within noise"),
        ((100, 104), (60, 50), 0.03, "other order"),
    ],
)
def test_a_pair_is_judged_by_its_order_in_each_measurement(there, here, noise, verdict):
    systems = ("fast", "vllm")
    found = agreement.pairs(reference(dict(zip(systems, there))), rows(dict(zip(systems, here))), {False: noise})
    assert found["verdict"].tolist() == [verdict]
    assert found["there"].tolist() == [there[1] / there[0]]
    assert found["here"].tolist() == [here[1] / here[0]]


def test_a_scale_between_the_measurements_changes_nothing_and_the_limit_takes_no_part():
    there, here = {"a": 1.0, "b": 2.0, "c": 3.0, "stream": 9.0}, {"a": 1000.0, "b": 3000.0, "c": 2000.0, "stream": 1.0}
    found = agreement.pairs(reference(there), rows(here, "eager"), {True: 0.0})
    assert found.set_index(["first", "second"])["verdict"].to_dict() == {
        ("a", "b"): "same order",
        ("a", "c"): "same order",
        ("b", "c"): "other order",
    }


def test_noise_is_how_ratios_move_between_two_runs():
    one, two = rows({"a": 10.0, "b": 20.0}), rows({"a": 30.0, "b": 66.0}, run="S")
    assert agreement.run_to_run({"x": one, "y": two}) == {False: pytest.approx(np.log(1.1)), True: 0.0}
    assert agreement.run_to_run({"x": one}) == {False: 0.0, True: 0.0}
    assert agreement.run_to_run({"x": one, "y": rows({"a": 30.0})}) == {False: 0.0, True: 0.0}


def test_noise_of_a_host_is_not_that_of_graphs():
    def run(host, of):
        return pd.concat([rows({"a": 10.0, "b": 20.0}, run=of), rows({"loop": 50.0 * host}, "eager", run=of)])

    noise = agreement.run_to_run({"x": run(1.0, "R"), "y": run(1.5, "S")})
    assert noise == {False: 0.0, True: pytest.approx(np.log(1.5))}


def test_the_reference_is_read_under_our_names_at_skew_0():
    frame = agreement.load_reference()
    assert set(frame["implementation"]) == set(agreement.OUR_SYSTEMS.values())
    assert set(frame["model"]) == set(agreement.OUR_MODELS.values())
    assert set(frame["skew"]) == {0.0}
    assert len(frame) == 11 * 3 * 5
    assert (frame["p50_us"] > 0).all()


def test_another_gpu_is_not_compared():
    assert agreement.sentences("nvidia-b200", {"headline": rows({"vllm": 1.0, "torch_loop": 2.0})}) == []
    text = agreement.sentences("nvidia-h200", {"headline": rows({"vllm": 900.0, "torch_loop": 20.0}, "eager")})
    assert len(text) == 1
    assert text[0].startswith("In the study headline, 1 pairs of systems at a point are in both measurements: 0 stand")
    assert "torch_loop and vllm at mixtral 32 (" in text[0]

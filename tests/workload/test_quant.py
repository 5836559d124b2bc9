"""The weight format as a dimension of a case: bytes, weights, reference, plan, and rows from before there was one."""

from dataclasses import asdict

import pytest
import torch

from tritonmoe_bench.baselines.stream import Stream
from tritonmoe_bench.experiments.implementation.contract import Status
from tritonmoe_bench.experiments.implementation.registry import implementations
from tritonmoe_bench.experiments.measure.layer import Layer
from tritonmoe_bench.experiments.sweeping.plan import make_plan
from tritonmoe_bench.experiments.table import store
from tritonmoe_bench.experiments.workload.case import QUANTS, Case
from tritonmoe_bench.experiments.workload.config import PlanError, StudyConfig, SweepConfig, load_model
from tritonmoe_bench.experiments.workload.reference import moe_forward, quantize_fp8, relative_error
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

PACKED = [name for name in QUANTS if name != "none"]


def case(quant="none", **changes):
    fields = {"model": "t", "num_experts": 4, "top_k": 2, "hidden_dim": 128, "ffn_dim": 256, "tokens": 6}
    return Case(**{**fields, "quant": quant, **changes})


def test_a_case_without_a_format_keeps_the_hash_it_had():
    old = {name: value for name, value in asdict(case()).items() if name != "quant"}
    assert case().case_hash == Case(**old).case_hash
    assert len({case(quant).case_hash for quant in QUANTS}) == len(QUANTS)


@pytest.mark.parametrize(
    ("quant", "expert_bytes"),
    [
        ("none", 3 * 128 * 256 * 2),
        ("fp8_block", 3 * 128 * 256 + 3 * 2 * 4),
        ("mxfp4", 3 * 128 * 256 // 2 + 3 * 128 * 256 // 32),
        ("int4", 3 * 128 * 256 // 2 + 3 * 128 * 256 // 128 * 2),
        ("int4_g32", 3 * 128 * 256 // 2 + 3 * 128 * 256 // 32 * 2),
    ],
)
def test_bytes_are_those_of_the_packed_weights_and_scales(quant, expert_bytes):
    one = case(quant)
    assert one.expert_bytes == expert_bytes
    assert one.min_bytes(3) == 3 * expert_bytes + (4 + 2 * 6) * 128 * 2
    assert Weights(one, "cpu").flat().nbytes == 4 * expert_bytes
    if quant != "none":
        made = Weights(one, "cpu")
        assert made.packed_gate_up().nbytes + made.packed_down().nbytes == 4 * expert_bytes


@pytest.mark.parametrize("quant", PACKED)
def test_the_reference_multiplies_what_the_format_holds(quant):
    made = Weights(case(quant), "cpu")
    gate_up, down = made.packed_gate_up().unpack(), made.packed_down().unpack()
    for index in range(4):
        gate, up, last = made.expert(index)
        assert torch.equal(torch.cat([gate, up]), gate_up[index])
        assert torch.equal(last, down[index])
    with pytest.raises(ValueError, match=f"the weights are packed as {quant}: ask for packed_gate_up"):
        made.gate_up()


def test_routing_and_activations_do_not_depend_on_the_format():
    for quant in PACKED:
        assert (draw_routing(case(quant)).experts == draw_routing(case()).experts).all()
        x = activations(case(quant), draw_routing(case(quant)), "cpu")
        assert torch.equal(x, activations(case(), draw_routing(case()), "cpu"))


def test_the_emulation_of_8_bit_activations_is_further_off_than_16_bits():
    one = case("fp8_block")
    x, made = activations(one, draw_routing(one), "cpu"), Weights(one, "cpu")
    arguments = (x, made.router(), made.expert, one.top_k, one.gate)
    exact = moe_forward(*arguments)
    half = relative_error(moe_forward(*arguments, dtype=torch.bfloat16), exact)
    eighth = relative_error(moe_forward(*arguments, quantize=quantize_fp8), exact)
    assert 0.001 < half < eighth < 0.06


def test_quantising_is_exact_where_e4m3_is():
    rows = torch.tensor([448.0, -1.75, 0.5, 2.0**-6] * 64).reshape(1, 256)
    assert torch.equal(quantize_fp8(rows), rows)


@pytest.mark.parametrize(
    ("quant", "changes", "words"),
    [
        ("fp8", {}, "quant=fp8: allowed are none, fp8_block, int4, int4_g32, mxfp4"),
        ("fp8_block", {"ffn_dim": 192}, "fp8_block takes rows in whole groups of 128: got 192"),
        ("mxfp4", {"hidden_dim": 144}, "mxfp4 takes columns in whole groups of 32: got 144"),
        ("int4", {"ffn_dim": 96}, "int4 takes columns in whole groups of 128: got 96"),
    ],
)
def test_what_a_format_cannot_hold_is_one_clear_error(quant, changes, words):
    with pytest.raises(ValueError, match=words):
        case(quant, **changes)


def test_a_sweep_takes_a_format_or_a_list_of_them():
    study = StudyConfig(name="t", kind="layer", grids=[])
    config = SweepConfig(study=study, model=load_model("tiny"), tokens=1, quant=["none", "fp8_block"])
    config.study.grids = load_grid()
    plan = make_plan(config, ["fast", "stream"])
    assert [each.quant for each in plan.cases] == ["none", "fp8_block"]
    config.quant = "fp7"
    with pytest.raises(PlanError, match="quant=fp7: allowed are none, fp8_block"):
        make_plan(config, ["fast", "stream"])


def load_grid():
    from tritonmoe_bench.experiments.workload.config import load

    return load("study", "adhoc").grids


def test_every_system_answers_for_every_format():
    for name, system in implementations().items():
        for quant in PACKED:
            if quant not in system.quants:
                answer = system.answer(case(quant))
                assert answer.status is Status.UNSUPPORTED, name
                assert answer.reason == f"quant={quant}: it computes with {', '.join(system.quants)}"
    assert Stream().quants == QUANTS


def test_rows_from_before_there_were_formats_are_of_none(tmp_path):
    path = tmp_path / "a.csv"
    names = [column.name for column in Layer.columns if not column.unstated]
    row = dict.fromkeys(names, "") | {"run_id": "r", "case_hash": "c", "implementation": "i", "launch": "graph",
                                      "status": "ok", "p50_us": "5", "timestamp_utc": "t"}  # fmt: skip
    path.write_text(",".join(names) + "\n" + ",".join(row[name] for name in names) + "\n", encoding="utf-8")
    frame = store.read(path)
    assert list(frame["quant"]) == ["none"]
    assert list(frame["activations"]) == ["a16"]

"""What the field disputes: the fastest of one side against the fastest of the other, point by point."""

import pytest
from claim_rows import frame, row

from tritonmoe_bench.experiments.claims import DISPUTED, Evidence, decide
from tritonmoe_bench.experiments.reporting.texts import claim_texts


def texts(claim, rows, device="nvidia-h200"):
    studies = {values["study"] for values in rows}
    frames = {study: frame([values for values in rows if values["study"] == study]) for study in studies}
    found = next(finding for finding in decide(Evidence(device, frames), DISPUTED) if finding.claim.id == claim)
    return claim_texts(found)


def headline(implementation, p50, tokens):
    return row(implementation, p50, study="headline", dtype="bf16", tokens=tokens)


def quant(implementation, p50, quant, tokens=8, **other):
    return row(implementation, p50, study="quant", tokens=tokens, quant=quant, dtype=f"bf16{quant}", **other)


def test_the_fastest_of_each_side_stands_for_it():
    rows = [headline("vllm", 120.0, 1), headline("sglang", 100.0, 1), headline("cutlass_grouped", 150.0, 1)]
    rows += [headline("vllm", 100.0, 8), headline("torch_grouped_mm", 90.0, 8), headline("cutlass_grouped", 95.0, 8)]
    told = texts("triton-over-cutlass-bf16", rows)
    assert (told.verdict.value, told.points) == ("holds in part", "1 of 2")
    assert "1.50 at 1" in told.sentence
    assert "0.90 at 8" in told.sentence
    assert "https://github.com/vllm-project/vllm/issues/44220" in told.threads
    assert texts("triton-over-cutlass-bf16", rows, "nvidia-a100").verdict.value == "undecided"


@pytest.mark.parametrize(("ffn", "ratio", "verdict"), [(768, 1.2, "holds"), (768, 0.8, "does not hold"),
                                                       (512, 0.8, "holds"), (768, 1.0, "does not hold")])  # fmt: skip
def test_deep_gemm_by_the_width_of_an_expert(ffn, ratio, verdict):
    rows = [quant("deep_gemm", 100.0, "fp8_block", ffn_dim=ffn), quant("vllm", 100.0 * ratio, "fp8_block", ffn_dim=ffn)]
    assert texts("deep-gemm-above-ffn", rows).verdict.value == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(1.5, "holds"), (1.0, "does not hold"), (0.7, "does not hold")])
def test_activations_of_8_bits_over_weights_of_4(ratio, verdict):
    rows = [quant("humming", 100.0, "mxfp4"), quant("humming_a8", 100.0 * ratio, "mxfp4")]
    assert texts("w4a8-slower-than-w4a16", rows).verdict.value == verdict


def test_int4_against_fp8_is_one_layer_in_two_formats():
    kimi = {"model": "kimi_k2"}
    rows = [quant("vllm_marlin", 100.0, "int4_g32", **kimi), quant("humming", 80.0, "int4_g32", **kimi),
            quant("vllm", 160.0, "fp8_block", **kimi), quant("stream", 10.0, "fp8_block", **kimi)]  # fmt: skip
    told = texts("int4-slower-than-fp8", rows)
    assert (told.verdict.value, told.measured) == ("does not hold", "2.00")
    assert texts("int4-slower-than-fp8", rows[:2]).verdict.value == "undecided"


def test_a_system_that_is_not_there_decides_nothing():
    told = texts("mono-moe-decode", [headline("vllm", 1.0, 1)])
    assert told.verdict.value == "undecided"
    assert texts("mono-moe-decode", [quant("vllm", 30.0, "fp8_block", tokens=1)]).verdict.value == "undecided"


def test_mono_moe_without_what_it_is_claimed_against_is_told_and_decides_nothing():
    rows = [quant("flashinfer_mono", 20.0, "fp8_block", tokens=1), quant("vllm", 30.0, "fp8_block", tokens=1),
            quant("fast", 22.0, "fp8_block", tokens=1), quant("fast", 30.0, "fp8_block", tokens=8),
            quant("flashinfer_mono", 40.0, "fp8_block", tokens=8)]  # fmt: skip
    told = texts("mono-moe-decode", rows)
    assert told.verdict.value == "not testable here"
    assert "over the fastest of those here, fast, mono_moe is 1.10x as fast at one token" in told.sentence
    assert "FlashInfer's CUTLASS path has no row" in told.sentence


@pytest.mark.parametrize(
    ("us", "verdict"), [(92.0, "holds"), (60.0, "holds in part"), (20.1, "does not hold"), (15.0, "does not hold")]
)
def test_mono_moe_beside_what_it_is_claimed_against(us, verdict):
    rows = [quant("flashinfer_mono", 20.0, "fp8_block", tokens=1), quant("vllm", 30.0, "fp8_block", tokens=1),
            quant("flashinfer_cutlass", us, "fp8_block", tokens=1),
            quant("flashinfer_mono", 40.0, "fp8_block", tokens=8)]  # fmt: skip
    told = texts("mono-moe-decode", rows)
    assert told.verdict.value == verdict
    assert f"mono_moe is {us / 20:.2f}x as fast as FlashInfer's CUTLASS path at 1 token" in told.sentence

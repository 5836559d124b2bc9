"""Runs the adapter of vLLM over the real Python code of a vLLM tree, without a GPU: `vllm_process.py TREE` prints JSON.

vLLM believes to be on an H200. Stood in for, in plain PyTorch: NVML, its compiled ops, and the one Triton kernel, which
is told by its arguments what to multiply. Everything between them is vLLM's, so a change of its API shows here.
"""

import json
import sys
import types
from pathlib import Path

TREE = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".src"))
sys.path[:0] = [str(TREE)]

import torch  # noqa: E402
from triton.backends import backends  # noqa: E402

OLD = (TREE / "vllm" / "_moe_C.abi3.so").exists()  # vLLM 0.22.1; 0.33.0 passes its operators more, and has fewer
LAUNCHES: list[dict] = []
CALLED: list[str] = []
OPS = {
    "_moe_C": {
        "topk_softmax": "(Tensor! w, Tensor! ids, Tensor! source, Tensor logits, bool renormalize, Tensor? bias) -> ()",
        "topk_sigmoid": "(Tensor! w, Tensor! ids, Tensor! source, Tensor logits, bool renormalize, Tensor? bias) -> ()",
        "grouped_topk": "(Tensor scores, int n_group, int topk_group, int topk, bool renormalize, float scale, "
                        "Tensor bias, int scoring) -> (Tensor, Tensor)",
        "dsv3_router_gemm": "(Tensor! out, Tensor x, Tensor w) -> ()",
        "moe_align_block_size": "(Tensor ids, int num_experts, int block_size, Tensor! sorted_ids, Tensor! expert_ids, "
                                "Tensor! padded, Tensor? expert_map) -> ()",
        "moe_sum": "(Tensor input, Tensor! output) -> ()",
    },
    "_C": {
        "silu_and_mul": "(Tensor! result, Tensor input) -> ()",
        "per_token_group_fp8_quant": "(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
                                     "float fp8_min, float fp8_max, bool scale_ue8m0, bool scale_is_transposed, "
                                     "bool scale_is_tma_aligned) -> ()",
    },
}  # fmt: skip
MORE = {
    "topk_softmax": "Tensor? is_padding",
    "topk_sigmoid": "float scale, Tensor? is_padding",
    "moe_align_block_size": "Tensor? scatter",
    "moe_sum": "Tensor? ids, Tensor? expert_map",
}
"""Parameters of 0.33.0's operators behind those of 0.22.1. All of them change nothing here."""
WITHOUT = {"dsv3_router_gemm"}
"""Operators that 0.33.0 has no longer."""


def topk(w, ids, source, logits, renormalize, bias, score) -> None:
    scores = score(logits.float())
    values, experts = scores.topk(w.shape[1], dim=-1)
    w.copy_(values / values.sum(-1, keepdim=True) if renormalize else values)
    ids.copy_(experts)


def topk_softmax(w, ids, source, logits, renormalize, bias, is_padding=None) -> None:
    assert is_padding is None
    topk(w, ids, source, logits, renormalize, bias, lambda values: values.softmax(-1))


def topk_sigmoid(w, ids, source, logits, renormalize, bias, scale=1.0, is_padding=None) -> None:
    assert (scale, is_padding) == (1.0, None)
    topk(w, ids, source, logits, renormalize, bias, torch.sigmoid)


def grouped_topk(scores, n_group, topk_group, k, renormalize, scale, bias, scoring):
    assert scoring == 1
    assert bias.dtype == torch.float32
    from tritonmoe_bench.experiments.workload.reference import route
    from tritonmoe_bench.kernels.gating import Gating

    gating = Gating("sigmoid", renormalize, n_group, topk_group, True, scale)
    weights, experts = route(scores, k, gating, bias)
    return weights, experts.int()


def dsv3_router_gemm(out, x, w) -> None:
    assert x.dtype == torch.bfloat16
    assert x.shape[0] <= 16
    out.copy_(x.float() @ w.float().T)


def moe_align_block_size(
    ids, num_experts, block_size, sorted_ids, expert_ids, padded, expert_map, scatter=None
) -> None:
    assert scatter is None
    flat = ids.flatten()
    sorted_ids.fill_(flat.numel())
    at = 0
    for expert in range(num_experts):
        slots = (flat == expert).nonzero().flatten()
        blocks = -(-slots.numel() // block_size)
        sorted_ids[at : at + slots.numel()] = slots.int()
        expert_ids[at // block_size : at // block_size + blocks] = expert
        at += blocks * block_size
    padded.fill_(at)


def moe_sum(input, output, ids=None, expert_map=None) -> None:
    output.copy_(input.float().sum(1))


def silu_and_mul(result, input) -> None:
    gate, up = input.float().chunk(2, dim=-1)
    result.copy_(torch.nn.functional.silu(gate) * up)


def per_token_group_fp8_quant(
    input, output_q, output_s, group_size, eps, low, high, ue8m0, scale_is_transposed, scale_is_tma_aligned
) -> None:
    assert (group_size, low, high) == (128, -448.0, 448.0)
    assert not ue8m0
    assert not scale_is_transposed
    groups = input.float().unflatten(-1, (-1, group_size))
    output_s.copy_(groups.abs().amax(-1).clamp(min=eps) / high)
    output_q.copy_((groups / output_s[..., None]).flatten(-2))


def dequantized(values, scales, group_rows, group_columns):
    if scales is None:
        return values.float()
    return values.float() * scales.repeat_interleave(group_rows, -2).repeat_interleave(group_columns, -1)


class Kernel:
    """In place of vLLM's fused_moe_kernel: the product that its arguments ask for."""

    def __getitem__(self, grid):
        return self.launch

    def launch(self, a, b, c, bias, a_scale, b_scale, topk_weights, sorted_ids, expert_ids, padded, n, k, em, slots,
               *strides, MUL_ROUTED_WEIGHT, top_k, BLOCK_SIZE_M, naive_block_assignment, **options):  # fmt: skip
        assert (b.shape[1], b.shape[2]) == (n, k)
        assert strides[:4] == (a.stride(0), a.stride(1), b.stride(0), b.stride(2))
        group_n, group_k = strides[-2:]
        assert (a_scale is None) == (b_scale is None) == (not options["use_fp8_w8a8"])
        assert (group_n, group_k) == ((0, 0) if a_scale is None else (128, 128))
        out = c.flatten(0, -2)
        for block in range(int(padded) // BLOCK_SIZE_M):
            if naive_block_assignment:
                rows = torch.tensor([block])
            else:
                rows = sorted_ids[block * BLOCK_SIZE_M : (block + 1) * BLOCK_SIZE_M].long()
                rows = rows[rows < slots]
            expert = int(expert_ids[block])
            left = dequantized(a[rows // top_k], None if a_scale is None else a_scale[rows // top_k], 1, group_k)
            product = left @ dequantized(b[expert], None if b_scale is None else b_scale[expert], group_n, group_k).T
            if MUL_ROUTED_WEIGHT:
                product *= topk_weights.flatten()[rows, None]
            out[rows] = product.to(out.dtype)
        LAUNCHES.append({"BLOCK_SIZE_M": BLOCK_SIZE_M, "naive": naive_block_assignment, **options})


def stand_in() -> list[torch.library.Library]:
    """Everything that needs a GPU; the libraries must be kept alive."""
    for backend in backends.values():
        nvidia = "nvidia" in backend.driver.__module__
        backend.driver.is_active = staticmethod(lambda nvidia=nvidia: nvidia)
    kept = []
    for namespace, schemas in OPS.items():
        library = torch.library.Library(namespace, "DEF")
        for name, schema in schemas.items():
            if not OLD and name in WITHOUT:
                continue
            library.define(
                name + (schema if OLD or name not in MORE else schema.replace(") ->", f", {MORE[name]}) ->", 1))
            )
            library.impl(name, globals()[name], "CPU")
        kept.append(library)
    for name in ("_C", "_C_stable_libtorch", "_moe_C", "_moe_C_stable_libtorch"):
        sys.modules[f"vllm.{name}"] = types.ModuleType(f"vllm.{name}")
    from vllm.third_party import pynvml

    pynvml.nvmlInit = pynvml.nvmlShutdown = lambda: None
    pynvml.nvmlDeviceGetCount = lambda: 1
    pynvml.nvmlDeviceGetHandleByIndex = lambda index: index
    pynvml.nvmlDeviceGetName = lambda handle: "NVIDIA H200"
    pynvml.nvmlDeviceGetCudaComputeCapability = lambda handle: (9, 0)
    torch.cuda.get_device_capability = lambda device=None: (9, 0)

    from vllm import _custom_ops
    from vllm.model_executor.layers.fused_moe import fused_moe
    from vllm.platforms import current_platform

    assert current_platform.is_cuda()
    library = torch.library.Library("vllm", "IMPL")
    fused_moe.fused_moe_kernel = Kernel()
    if OLD:
        library.impl("outplace_fused_experts", fused_moe.outplace_fused_experts, "CPU")
        gemm = _custom_ops.dsv3_router_gemm
        _custom_ops.dsv3_router_gemm = lambda *arguments: CALLED.append("dsv3_router_gemm") or gemm(*arguments)
    else:
        library.impl("fused_experts", fused_moe.fused_experts_op, "CPU")
    return [*kept, library]


def run() -> list[dict]:
    from tritonmoe_bench.baselines import vllm as adapters
    from tritonmoe_bench.baselines.parts import vllm_tuning
    from tritonmoe_bench.experiments.workload.case import Case
    from tritonmoe_bench.experiments.workload.reference import moe_forward, quantize_fp8, relative_error
    from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
    from tritonmoe_bench.experiments.workload.weights import Weights

    tiny = {"model": "tiny", "num_experts": 8, "top_k": 2, "hidden_dim": 128, "ffn_dim": 96, "tokens": 5}
    cases = [
        tiny,
        {**tiny, "gating": "softmax_renorm", "tokens": 70},
        {**tiny, "gating": "sigmoid", "dtype": "fp16"},
        {**tiny, "gating": "sigmoid_renorm"},
        {**tiny, "num_experts": 64, "top_k": 4, "tokens": 1},
        {**tiny, "num_experts": 64, "top_k": 8, "gating": "deepseek_v3"},
        {**tiny, "num_experts": 48, "top_k": 8, "gating": "kimi_k2"},
        {**tiny, "num_experts": 256, "hidden_dim": 7168, "ffn_dim": 8, "tokens": 3},
        {**tiny, "num_experts": 8, "hidden_dim": 16, "ffn_dim": 14336, "tokens": 33},
        {**tiny, "hidden_dim": 256, "ffn_dim": 128, "quant": "fp8_block"},
        {**tiny, "hidden_dim": 128, "ffn_dim": 384, "num_experts": 64, "tokens": 1, "quant": "fp8_block"},
        {**tiny, "hidden_dim": 128, "ffn_dim": 2048, "tokens": 3, "quant": "fp8_block"},
    ]
    results = []
    for fields in cases:
        case = Case(**fields)
        weights = Weights(case, "cpu")
        x = activations(case, draw_routing(case), "cpu")
        layer = (weights.router(), weights.expert, case.top_k, case.gate, weights.correction_bias())
        reference = moe_forward(x, *layer)
        allowed = 0.008
        if case.quant != "none":
            allowed = 1.2 * relative_error(moe_forward(x, *layer, x.dtype, quantize_fp8), reference)
        adapter = adapters.Vllm()
        LAUNCHES.clear()
        CALLED.clear()
        with torch.inference_mode():
            y = adapter.build(case, weights)(x)
            tile = vllm_tuning.first_round(case.tokens, case.num_experts, case.top_k, case.quant)[-1]
            tuned = adapters._forward(case, weights, tile)(x)
        results.append({
            "case": fields, "error": relative_error(y, reference), "tuned_error": relative_error(tuned, reference),
            "allowed": allowed, "config": adapter.config(case), "table": adapters._table(case), "launch": LAUNCHES[2],
            "tuned_launch": LAUNCHES[-1], "tile": tile, "called": list(CALLED), "launches": len(LAUNCHES),
        })  # fmt: skip
    return results


if __name__ == "__main__":
    libraries = stand_in()
    print(json.dumps(run(), default=str))

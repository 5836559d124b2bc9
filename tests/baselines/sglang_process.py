"""Runs the adapter of SGLang over the real Python code of a pruned tree, with no GPU: `sglang_process.py TREE` -> JSON.

SGLang believes to be on an H200. Stood in for, in plain PyTorch: its compiled ops, and its two Triton kernels, which
are told by their arguments what to compute. Everything between them is SGLang's, so a change of its API shows here.
"""

import importlib
import json
import sys
import types
from pathlib import Path

TREE = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".src"))
sys.path[:0] = [str(TREE)]

import torch  # noqa: E402

LAUNCHES: list[dict] = []
ROUTED: list[dict] = []
SIGMOID, SOFTMAX = 0, 2
IMPL = torch.library.Library.impl


def moe_align_block_size(ids, num_experts, block_size, sorted_ids, expert_ids, padded, cumsum, pad_sorted_ids) -> None:
    """As sgl_kernel's: ids shifted by one, so that -1, an expert of another rank, counts as the first."""
    assert pad_sorted_ids
    assert cumsum.numel() == num_experts + 1
    flat = ids.flatten()
    sorted_ids.fill_(flat.numel())
    at = 0
    for expert in range(-1, num_experts - 1):
        slots = (flat == expert).nonzero().flatten()
        blocks = -(-slots.numel() // block_size)
        sorted_ids[at : at + slots.numel()] = slots.int()
        expert_ids[at // block_size : at // block_size + blocks] = expert
        at += blocks * block_size
    padded.fill_(at)


def moe_sum_reduce(input, output, scale) -> None:
    output.copy_(input.float().sum(1) * scale)


def silu_and_mul(input, out) -> None:
    gate, up = input.float().chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate) * up)


class Expert:
    """In place of SGLang's fused_moe_kernel: the product that its arguments ask for."""

    def __getitem__(self, grid):
        return self.launch

    def launch(self, a, a_desc, b, b_desc, bias, c, a_scale, b_scale, topk_weights, sorted_ids, expert_ids, padded,
               mask, n, k, em, slots, *strides, MUL_ROUTED_WEIGHT, top_k, BLOCK_SIZE_M, compute_type, even_Ks,
               filter_expert, **options):  # fmt: skip
        assert a_desc is b_desc is bias is a_scale is b_scale is mask is None
        assert not filter_expert
        assert (b.shape[1], b.shape[2]) == (n, k)
        assert strides[:5] == (a.stride(0), a.stride(1), b.stride(0), b.stride(2), b.stride(1))
        out = c.flatten(0, -2)
        for block in range(int(padded) // BLOCK_SIZE_M):
            rows = sorted_ids[block * BLOCK_SIZE_M : (block + 1) * BLOCK_SIZE_M].long()
            rows = rows[rows < slots]
            product = a[rows // top_k].float() @ b[int(expert_ids[block])].float().T
            if MUL_ROUTED_WEIGHT:
                product *= topk_weights.flatten()[rows, None]
            out[rows] = product.to(out.dtype)
        tile = {name: value for name, value in options.items() if name.startswith("BLOCK_") or name == "GROUP_SIZE_M"}
        LAUNCHES.append({"BLOCK_SIZE_M": BLOCK_SIZE_M, **tile})


class Router:
    """In place of SGLang's _router_triton_kernel."""

    def __getitem__(self, grid):
        return self.launch

    def launch(self, scores, bias, weights, indices, rows, scale, softcap, *, K, K_ROUTED, N_GROUP, TOPK_GROUP,
               SCORING_FUNC, RENORMALIZE, APPLY_SCALE, **options):  # fmt: skip
        from tritonmoe_bench.experiments.workload.reference import route
        from tritonmoe_bench.kernels.gating import Gating

        assert K == K_ROUTED
        assert softcap == 0
        assert bias.dtype == torch.float32
        scoring = {SIGMOID: "sigmoid", SOFTMAX: "softmax"}[SCORING_FUNC]
        biased = bool(bias.any())
        gating = Gating(scoring, RENORMALIZE, N_GROUP, TOPK_GROUP, biased, scale if APPLY_SCALE else 1.0)
        found, experts = route(scores, K, gating, bias if biased else None)
        weights.copy_(found)
        indices.copy_(experts)
        ROUTED.append({"groups": N_GROUP, "top_groups": TOPK_GROUP, "scale": gating.scale, "biased": biased})


def stand_in() -> None:
    """Everything that needs a GPU."""
    torch.library.Library.impl = registers_for_cpu
    torch.compile = lambda function=None, **options: function or (lambda decorated: decorated)
    ops = types.ModuleType("sgl_kernel")
    ops.moe_align_block_size, ops.moe_sum_reduce, ops.silu_and_mul = moe_align_block_size, moe_sum_reduce, silu_and_mul
    sys.modules["sgl_kernel"] = ops
    properties = types.SimpleNamespace(major=9, minor=0, name="NVIDIA H200", total_memory=2**37)
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_name = lambda device=None: properties.name

    from tritonmoe_bench.baselines.install import sglang_tree, trees

    trees.FOLDER = TREE.parent
    sglang_tree.one_gpu()
    from sglang.kernels.ops.activation import activation
    from sglang.kernels.ops.moe import fused_moe_triton_kernels, moe_fused_gate

    def no_compiler(*arguments, **options):
        raise RuntimeError("no nvcc in this test")

    activation.load_jit = no_compiler
    # The package has a function of that name.
    importlib.import_module("sglang.kernels.ops.gemm.dsv3_router_gemm").load_jit = no_compiler
    fused_moe_triton_kernels.fused_moe_kernel = Expert()
    moe_fused_gate._router_triton_kernel = Router()


def registers_for_cpu(self, name, function, dispatch_key="", **options):
    ours = self.ns == "sglang" and dispatch_key == "CUDA"
    return IMPL(self, name, function, "CPU" if ours else dispatch_key, **options)


def run() -> list[dict]:
    from tritonmoe_bench.baselines.sglang import Sglang
    from tritonmoe_bench.experiments.workload.case import Case
    from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
    from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
    from tritonmoe_bench.experiments.workload.weights import Weights

    tiny = {"model": "tiny", "num_experts": 8, "top_k": 2, "hidden_dim": 128, "ffn_dim": 96, "tokens": 5}
    cases = [
        tiny,
        {**tiny, "gating": "softmax_renorm", "tokens": 70, "top_k": 4},
        {**tiny, "gating": "sigmoid", "dtype": "fp16", "top_k": 1},
        {**tiny, "gating": "sigmoid_renorm", "top_k": 3},
        {**tiny, "num_experts": 64, "top_k": 8, "gating": "deepseek_v3"},
        {**tiny, "num_experts": 48, "top_k": 8, "gating": "kimi_k2", "tokens": 40},
        {**tiny, "num_experts": 256, "hidden_dim": 1024, "ffn_dim": 8, "tokens": 3},
        {**tiny, "num_experts": 8, "hidden_dim": 16, "ffn_dim": 14336, "tokens": 33},
    ]
    results = []
    for fields in cases:
        case = Case(**fields)
        weights = Weights(case, "cpu")
        x = activations(case, draw_routing(case), "cpu")
        before = x.clone()
        reference = moe_forward(x, weights.router(), weights.expert, case.top_k, case.gate, weights.correction_bias())
        adapter = Sglang()
        LAUNCHES.clear()
        ROUTED.clear()
        with torch.inference_mode():
            y = adapter.build(case, weights)(x)
        results.append({
            "case": fields, "error": relative_error(y, reference), "config": adapter.config(case),
            "launches": list(LAUNCHES), "routed": list(ROUTED), "unchanged": bool(torch.equal(x, before)),
        })  # fmt: skip
    return results


if __name__ == "__main__":
    stand_in()
    print(json.dumps(run()))

"""Runs Megablocks in a process of its own for test_baseline_megablocks.py, and prints what it found as JSON.

The two builds of grouped_gemm have one name, so each adapter needs its own process. On a GPU all is real. Without one,
Triton's kernels are interpreted, and the CUDA extensions are replaced by the few lines of PyTorch that they stand for:
what is then tested is Megablocks' Python, its Triton kernels with our patches, and the adapter.
"""

import json
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".src"))

from tritonmoe_bench.experiments.implementation import registry
from tritonmoe_bench.experiments.interpreter import repair
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.reference import moe_forward, relative_error
from tritonmoe_bench.experiments.workload.routing import TORCH_DTYPE, activations, draw_routing
from tritonmoe_bench.experiments.workload.weights import Weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BIG_STRIDE = 1 << 16
"""Elements from row to row of a matrix whose far rows lie beyond 2^31 elements; only a few of its pages are touched."""


def megablocks_ops() -> types.ModuleType:
    """What csrc of Megablocks computes."""
    module = types.ModuleType("megablocks_ops")

    def sort(x, end_bit, x_out, iota_out):
        values, order = (x & ((1 << end_bit) - 1)).sort(stable=True)
        x_out.copy_(values)
        iota_out.copy_(order)

    def indices(padded_bins, block_size, output_block_rows, output_block_columns, out):
        rows = torch.arange(output_block_rows, device=out.device) * block_size
        expert = torch.searchsorted(padded_bins.long(), rows, right=True)
        columns = torch.arange(output_block_columns, device=out.device)
        out.copy_((expert[:, None] * output_block_columns + columns).flatten())

    module.sort = sort
    module.indices = indices
    module.histogram = lambda x, bins: torch.bincount(x.long(), minlength=bins).int()
    module.inclusive_cumsum = lambda x, dim, out: out.copy_(x.cumsum(dim))
    return module


def grouped_gemm_backend() -> types.ModuleType:
    """What csrc of grouped_gemm computes, with what it demands of its arguments."""
    module = types.ModuleType("grouped_gemm_backend")

    def gmm(a, b, c, batch_sizes, trans_a, trans_b):
        assert not trans_a
        assert a.dtype == b.dtype == c.dtype == torch.bfloat16
        assert (batch_sizes.dtype, batch_sizes.device.type) == (torch.int64, "cpu")
        assert all(operand.is_contiguous() for operand in (a, b, c))
        start = 0
        for expert, rows in enumerate(batch_sizes.tolist()):
            c[start : start + rows] = a[start : start + rows] @ (b[expert].T if trans_b else b[expert])
            start += rows
        assert start == a.shape[0]

    module.gmm = gmm
    return module


def on_cpu() -> None:
    repair.install()
    sys.modules["megablocks_ops"] = megablocks_ops()
    sys.modules["grouped_gemm_backend"] = grouped_gemm_backend()
    from megablocks.backend import kernels

    kernels._padded_copy.configs = kernels._padded_copy.configs[:1]  # nothing can be tuned without a GPU


def check(implementation, case: Case) -> dict:
    """The real extensions, imported as the adapter does."""
    found = implementation.check(case)
    return {"status": found.status.value, "reason": found.reason, "version": implementation.version()}


def forward(implementation, case: Case) -> dict:
    """Relative errors of the adapter and of PyTorch in 16 bits, and whether the parameters are the workload's own."""
    if DEVICE == "cpu":
        on_cpu()
    weights = Weights(case, DEVICE)
    x = activations(case, draw_routing(case), DEVICE)
    y = implementation.build(case, weights)(x)
    arguments = (x, weights.router(), weights.expert, case.top_k, case.gate)
    reference = moe_forward(*arguments)
    return {
        "shape": list(y.shape), "dtype": str(y.dtype), "held": sorted(str(key) for key in weights._made),
        "error": relative_error(y, reference),
        "torch_error": relative_error(moe_forward(*arguments, dtype=TORCH_DTYPE[case.dtype]), reference),
    }  # fmt: skip


def offsets(implementation, case: Case) -> dict:
    """Errors of stanford-stk's products whose dense operand reaches beyond 2^31 elements, at the far block alone."""
    if DEVICE == "cpu":
        on_cpu()
    import stk.ops

    block, blocks = 128, 2**31 // (128 * BIG_STRIDE) + 2
    far = blocks - 1
    dense = torch.empty(blocks * block * BIG_STRIDE, dtype=torch.float16, device=DEVICE)
    dense = dense.as_strided((blocks * block, block), (BIG_STRIDE, 1))
    dense[far * block :] = torch.randn(block, block, device=DEVICE)
    topology = stk.Matrix(
        (block, blocks * block),
        torch.empty(1, block, block, dtype=torch.float16, device="meta"),
        torch.zeros(1, dtype=torch.int16, device=DEVICE),
        torch.tensor([far], dtype=torch.int16, device=DEVICE),
        torch.tensor([0, 1], dtype=torch.int32, device=DEVICE),
        *(torch.zeros(1, dtype=kind, device=DEVICE) for kind in (torch.int16, torch.int32, torch.int32)),
    )
    x = torch.randn(block, block, device=DEVICE).half()
    product = stk.ops.sdd(x, dense.t(), topology)
    back = stk.ops.dsd(product, dense)
    weight = dense[far * block :].float()
    return {
        "sdd": relative_error(product.data[0], x.float() @ weight.T),
        "dsd": relative_error(back, product.data[0].float() @ weight),
    }


def compiled(implementation, case: Case) -> dict:
    """Shared memory in bytes, and whether the tensor cores of sm_90 are used, of the kernels compiled with no GPU."""
    import triton
    import triton.language as tl
    from megablocks.backend import kernels
    from stk.backend import triton_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    integers = ("M", "N", "K", "stride_am", "stride_ak", "stride_bk", "stride_bn", "stride_cm", "stride_cn")
    tiles = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32, "BLOCK_SIZE": 128, "GROUP_M": 128, "ACC_TYPE": tl.float32}
    copy = {"NUM_COLUMNS": case.hidden_dim, "TOP_K": case.top_k, "BLOCK_X": 256}
    types = {
        **dict.fromkeys(("A", "B", "C", "a", "b", "weights"), f"*{case.dtype}"), **dict.fromkeys(integers, "i32"),
        "row_indices": "*i16", "column_indices": "*i16", "out": "*i16",
        **dict.fromkeys(("offsets", "block_offsets_t", "indices", "bin_ids", "bins", "padded_bins"), "*i32"),
    }  # fmt: skip
    unit = {"stride_ak": 1, "stride_cn": 1}
    products = {
        "sdd": (triton_kernels._sdd_kernel.fn, {**tiles, **unit, "stride_bk": 1}),
        "dsd": (triton_kernels._dsd_kernel.fn, {**tiles, **unit, "stride_bn": 1, "trans_A": False, "trans_B": False}),
        "row_indices": (triton_kernels._row_indices_kernel, {}),
        "gather": (kernels._padded_copy.fn, {**copy, "weights": None, "A_TO_B": True, "SCALE": False}),
        "scatter": (kernels._padded_copy.fn, {**copy, "A_TO_B": False, "SCALE": True}),
    }
    found = {}
    for name, (kernel, constants) in products.items():
        names = kernel.arg_names
        aligned = {(names.index(arg),): [["tt.divisibility", 16]] for arg in names
                   if arg not in constants and (arg in integers or types[arg][0] == "*")}  # fmt: skip
        source = ASTSource(
            kernel, {arg: "constexpr" if arg in constants else types[arg] for arg in names},
            {(names.index(arg),): value for arg, value in constants.items()}, aligned,
        )  # fmt: skip
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 4})
        found[name] = {"shared": made.metadata.shared, "wgmma": "wgmma" in made.asm["ptx"]}
    return found


def main() -> None:
    action, name, fields = sys.argv[1:]
    implementation = registry.get(name)
    sys.path[:0] = [str(folder) for folder in implementation.search_path()]
    torch.manual_seed(0)
    actions = {"check": check, "forward": forward, "offsets": offsets, "compile": compiled}
    print(json.dumps(actions[action](implementation, Case(**json.loads(fields)))))


if __name__ == "__main__":
    main()

"""Compiles kernels ahead of time, with no GPU and no driver, and prints one line of JSON for each.

Run as a file, in a process of its own: where LLVM aborts it takes the process along, and a process that interprets
Triton cannot compile it. Arguments: targets, as keys of TARGETS.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
runpy.run_path(str(ROOT / "experiments" / "checkout.py"))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tritonmoe_bench.kernels import default_tiles  # noqa: E402
from tritonmoe_bench.kernels.fused_gate_up import _fused_gate_up_kernel  # noqa: E402
from tritonmoe_bench.kernels.grouped_gemm import _grouped_gemm_kernel  # noqa: E402
from tritonmoe_bench.kernels.permute import _permute_kernel, _unpermute_combine_kernel  # noqa: E402
from tritonmoe_bench.kernels.router import _score_topk_kernel  # noqa: E402
from tritonmoe_bench.kernels.schedule import _list_blocks_kernel, _sort_slots_kernel  # noqa: E402
from tritonmoe_bench.kernels.silu_mul import _silu_mul_kernel  # noqa: E402
from tritonmoe_bench.kernels.tiles import BLOCK_M, GROUP_M, GemmTile  # noqa: E402

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
    "gfx950": (GPUTarget("hip", "gfx950", 64), 160 * 1024),
}
"""Target and the shared memory that one program may take, in bytes."""
MATRIX_INSTRUCTION = r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma)"
HIDDEN, FFN, EXPERTS, TOP_K = 4096, 14336, 64, 4
RAGGED_HIDDEN, RAGGED_FFN = 2888, 1416  # whole 16 bytes, but no tile divides them


def kernels(dtype: str, shared_bytes: int) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """(name, kernel, types of the run-time arguments, compile-time arguments, options), with the default tiles.

    For fp16 the GEMMs alone: the other kernels do nothing with the dtype but load and store it.
    """
    ptr, tiles = f"*{dtype}", default_tiles(shared_bytes)
    schedule = dict.fromkeys(("block_expert", "block_row", "offsets"), "*i32") | {"stride_expert": "i32"}
    ragged = [("_ragged", RAGGED_FFN, RAGGED_HIDDEN)] if dtype == "bf16" else []
    for label, n, k in (("", FFN, HIDDEN), *ragged):
        yield (f"fused_gate_up{label}", _fused_gate_up_kernel,
               {"rows": ptr, "gate_up": ptr, "hidden": ptr, **schedule},
               {"FFN": n, "K": k, "STRIDE_N": k, **blocks(tiles.fused)}, options(tiles.fused))  # fmt: skip
        for name, tile in (("gate_up", tiles.gate_up), ("down", tiles.down)):
            yield (f"{name}{label}", _grouped_gemm_kernel,
                   {"rows": ptr, "weights": ptr, "out": ptr, **schedule},
                   {"N": n, "K": k, "STRIDE_N": k, **blocks(tile)}, options(tile))  # fmt: skip
    if dtype != "bf16":
        return
    yield ("score_topk", _score_topk_kernel,
           {"logits": ptr, "weights": "*fp32", "experts": "*i32", "num_tokens": "i32", "stride_token": "i32",
            "scale": "fp32"},
           {"NUM_EXPERTS": EXPERTS, "TOP_K": TOP_K, "SIGMOID": False, "RENORMALIZE": True,
            "BLOCK_T": 4, "BLOCK_E": 64, "BLOCK_K": 4}, {"num_warps": 1})  # fmt: skip
    yield ("sort_slots", _sort_slots_kernel,
           {"experts": "*i32", "order": "*i32", "offsets": "*i32", "num_slots": "i32"},
           {"NUM_EXPERTS": EXPERTS, "BLOCK": 2048}, {"num_warps": 8})  # fmt: skip
    yield ("list_blocks", _list_blocks_kernel,
           {"offsets": "*i32", "block_expert": "*i32", "block_row": "*i32", "num_blocks": "i32"},
           {"NUM_EXPERTS": EXPERTS, "BLOCK_M": BLOCK_M, "BLOCK_E": 64, "BLOCK_B": 32}, {})  # fmt: skip
    yield ("permute", _permute_kernel,
           {"x": ptr, "order": "*i32", "rows": ptr, "row_of_slot": "*i32", "num_rows": "i32", "stride_token": "i32"},
           {"TOP_K": TOP_K, "HIDDEN": HIDDEN, "BLOCK_R": 1, "BLOCK_H": 1024}, {})  # fmt: skip
    yield ("unpermute_combine", _unpermute_combine_kernel,
           {"expert_out": ptr, "row_of_slot": "*i32", "weights": "*fp32", "y": ptr, "num_tokens": "i32"},
           {"TOP_K": TOP_K, "HIDDEN": HIDDEN, "BLOCK_R": 1, "BLOCK_H": 1024}, {})  # fmt: skip
    yield ("silu_mul", _silu_mul_kernel,
           {"gate": ptr, "up": ptr, "hidden": ptr, "num_elements": "i32"}, {"BLOCK": 2048}, {})  # fmt: skip


def blocks(tile: GemmTile) -> dict[str, int]:
    return {"BLOCK_M": BLOCK_M, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": GROUP_M}


def options(tile: GemmTile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def compile_kernel(
    kernel: Any, arguments: dict[str, str], constants: dict[str, Any], chosen: dict[str, int], target: GPUTarget
) -> dict[str, Any]:
    """The `resources` of one kernel on one target."""
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    # What the launcher finds out at run time: pointers and strides are aligned, as those of every public model are.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if arguments.get(name, "").startswith("*") or name.startswith("stride")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return resources(triton.compile(source, target=target, options=chosen), target)


def resources(compiled: Any, target: GPUTarget) -> dict[str, Any]:
    """Matrix instructions, registers, spilled bytes or registers, and shared memory of a compiled kernel."""
    text = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    registers, spills = nvidia_resources(compiled.asm["cubin"]) if target.backend == "cuda" else amd_resources(text)
    return {
        "matrix_instructions": sorted(set(re.findall(MATRIX_INSTRUCTION, text))),
        "registers": registers,
        "spills": spills,
        "shared_bytes": compiled.metadata.shared,
    }


def nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes a thread of local memory) by cuobjdump, which comes with triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(\w+):(\d+)", done.stdout))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def amd_resources(text: str) -> tuple[int, int]:
    """(vector registers a lane, registers spilled), from the metadata in the assembly text."""
    found = dict(re.findall(r"\.((?:vgpr|sgpr)(?:_spill)?_count):\s+(\d+)", text))
    return int(found["vgpr_count"]), int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"])


def main(names: list[str]) -> None:
    for name in names:
        target, shared_bytes = TARGETS[name]
        for dtype in ("bf16", "fp16"):
            for kernel_name, kernel, arguments, constants, chosen in kernels(dtype, shared_bytes):
                found = compile_kernel(kernel, arguments, constants, chosen, target)
                print(json.dumps({"target": name, "dtype": dtype, "kernel": kernel_name, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TARGETS))

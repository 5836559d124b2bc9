"""Compiles recorded launches, with no GPU and no driver, and reads back what became of them.

A worker: a line of JSON from record.py on stdin, the row of the matrix as a line of JSON on stdout, until
stdin ends. LLVM aborts the process where it gives up, so matrix.py runs it apart from itself and starts another.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton

from .device import Driver
from .gpus import TARGETS, TENSOR_MEMORY_COLUMNS, Gpu

MATRIX_INSTRUCTION = r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma|v_smfmac)"
LEFT_TO_MMA_SYNC = re.compile(r"tt\.dot .* -> tensor<(\d+)x(\d+)x")
"""In the last target-independent text, a dot that no wgmma and no tcgen05.mma took: rows and columns of its result."""
FROM_REGISTERS = re.compile(r"(%\w+) = ttng\.warp_group_dot [^\n]*: tensor<[^\n]*#ttg\.dot_op")
"""As the IR shows it: a wgmma whose left operand is in registers, and the name of its result."""
LEFT_RUNNING = re.compile(r"ttng\.warp_group_dot_wait ([^{\n]*)\{pendings = [1-9]")
"""A wait that leaves some of the products that it is given running."""
WGMMA_ROWS, WGMMA_COLUMNS = 64, 16
"""The least tile that wgmma and tcgen05.mma take; tl.dot has no narrower columns."""
LOADS = (
    (r"cp\.async\.bulk\.tensor", "bulk"),
    (r"cp\.async\.c[ag]", "cp.async"),
    (r"\b(?:global|buffer)_load\w* [^\n]*\blds\b|\bglobal_load_lds|\bbuffer_load\w*_lds", "load to LDS"),
)
"""How tiles get into shared memory while others are computed with, as the assembly shows it."""
THROUGH_REGISTERS = r"ttg\.local_store .*mutable"
"""As the IR shows it: loads of the next step are kept in registers, and stored once the step before it is computed."""


def compile_launch(launch: dict[str, Any]) -> dict[str, Any]:
    """The kernel of a launch, compiled for its target. Raises what Triton raises."""
    gpu = TARGETS[launch["target"]]
    kernel = getattr(importlib.import_module(launch["module"]), launch["kernel"])
    triton.runtime.driver.set_active(Driver(gpu))
    kernel.device_caches.clear()  # they hold the target before
    return resources(kernel.preload(launch["specialization"]), gpu)


def resources(compiled: Any, gpu: Gpu) -> dict[str, Any]:
    """What a compiled kernel takes, and whether it runs on the target.

    matrix_instruction: of the assembly, joined by "+"; pipelined: how loads overlap with computing, empty if they do
    not; registers: a thread's vector registers; spills: bytes a thread of local memory; shared_bytes: a program's.
    """
    text = compiled.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]
    registers, spills = nvidia_resources(compiled.asm["cubin"]) if gpu.backend == "cuda" else amd_resources(text)
    found = {
        "matrix_instruction": "+".join(sorted(set(re.findall(MATRIX_INSTRUCTION, text)))),
        "pipelined": pipelining(compiled, text),
        "registers": registers,
        "spills": spills,
        "shared_bytes": compiled.metadata.shared,
    }
    status, reason = verdict(compiled, found, gpu)
    return {"status": status, "reason": reason, **found}


def verdict(compiled: Any, found: dict[str, Any], gpu: Gpu) -> tuple[str, str]:
    """(status, reason) by the limits of the target, which the compiler does not check."""
    if found["shared_bytes"] > gpu.shared_bytes:
        return "too_much_shared", f"{found['shared_bytes']} bytes of shared memory of {gpu.shared_bytes}"
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    if columns > TENSOR_MEMORY_COLUMNS:
        return "too_much_shared", f"{columns} columns of tensor memory of {TENSOR_MEMORY_COLUMNS}"
    if found["spills"]:
        return "spills", f"{found['spills']} bytes a thread of local memory at {found['registers']} registers"
    products = set(FROM_REGISTERS.findall(compiled.asm["ttgir"]))
    if any(products & set(re.findall(r"%\w+", waited)) for waited in LEFT_RUNNING.findall(compiled.asm["ttgir"])):
        return "overwrites_operand", "a wgmma may still read registers that the next step writes"
    if "tt.dot " in compiled.asm["ttir"]:
        if not found["matrix_instruction"]:
            return "misses_matrix_unit", "no matrix instruction in the assembly"
        if gpu.backend == "cuda" and gpu.capability >= (9, 0):
            left = LEFT_TO_MMA_SYNC.findall(compiled.asm["ttgir"])
            tall = [f"{m}x{n}" for m, n in left if int(m) >= WGMMA_ROWS and int(n) >= WGMMA_COLUMNS]
            if tall:
                return "misses_matrix_unit", f"mma.sync for a tile of {tall[0]}"
    return "ok", ""


def pipelining(compiled: Any, text: str) -> str:
    """How tiles are fetched ahead, joined by "+"; empty for a kernel that computes with what it has just loaded."""
    if "tt.dot " not in compiled.asm["ttir"]:
        return ""
    ways = [name for pattern, name in LOADS if re.search(pattern, text)]
    if not ways and re.search(THROUGH_REGISTERS, compiled.asm["ttgir"]):
        ways.append("registers")
    return "+".join(ways)


def nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes a thread of local memory), by cuobjdump, which comes with triton.

    A stack frame that no instruction stores to or loads from is none.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(what: str) -> str:
            return subprocess.run(
                [tool, what, file.name], capture_output=True, encoding="utf-8", errors="replace", check=True
            ).stdout

        usage = dict(re.findall(r"(\w+):(\d+)", dump("--dump-resource-usage")))
        local = int(usage["STACK"]) + int(usage["LOCAL"])
        if local and not re.search(r"\b(STL|LDL)\b", dump("--dump-sass")):
            local = 0
    return int(usage["REG"]), local


def amd_resources(text: str) -> tuple[int, int]:
    """(vector registers a lane, bytes a lane of scratch memory), from the metadata in the assembly text.

    Scalar registers that spill into lanes of vector registers touch no memory, and are not counted.
    """
    found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])


def main() -> None:
    # What the compiler itself prints must not come between the rows.
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        launch = json.loads(line)
        try:
            row = compile_launch(launch)
        except Exception as error:
            row = {"status": "does_not_compile", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

"""Where a number comes from: GPU, driver, software and commit. As a file, prints this machine's as one line of JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tritonmoe_bench import ROOT

from .. import checkout

INTERPRETER = "interpreter"
"""Device name of a machine with no GPU, where Triton's interpreter runs the kernels."""
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
"""The devices of the drivers of NVIDIA, of Windows below Linux, and of AMD: without one of them, and without NVIDIA's
tool in the path, there is no GPU."""


def now_utc() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit() -> tuple[str, bool | str]:
    """(commit, whether sources differ from it), from TRITONMOE_GIT_COMMIT and TRITONMOE_GIT_DIRTY where
    the checkout travelled without its history or with an older one, else from git; ("unknown", "unknown") where neither
    tells."""
    if "TRITONMOE_GIT_COMMIT" in os.environ:
        return os.environ["TRITONMOE_GIT_COMMIT"], os.environ.get("TRITONMOE_GIT_DIRTY", "unknown") == "true"
    head = checkout.commit_of(ROOT, "experiments")
    if head:
        return head, bool(
            checkout.git(ROOT, "status", "--porcelain", "--", ".", ":!results", ":!plots/figures", ":!README.md")
        )
    return "unknown", "unknown"


def installed(package: str) -> str:
    """Version of a distribution, empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def environment() -> dict[str, Any]:
    """Device, software and commit of this machine; starts CUDA if there is a GPU, so ask in a process of its own."""
    git_commit, git_dirty = commit()
    found: dict[str, Any] = {
        "device": INTERPRETER, "device_uuid": "", "driver": "", "cuda": "", "l2_bytes": 0, "memory_bytes": 0,
        "torch": installed("torch"), "triton": installed("triton"), "python": platform.python_version(),
        "git_commit": git_commit, "git_dirty": git_dirty,
    }  # fmt: skip
    if not (shutil.which("nvidia-smi") or any(path.exists() for path in DRIVERS)):
        return found  # and PyTorch, which takes seconds to import, need not be asked
    import torch

    if torch.cuda.is_available():
        from tritonmoe_bench.kernels.fast.tuned import slug  # the name by which tuned tables are found too

        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": slug(properties.name), "device_uuid": str(getattr(properties, "uuid", "")),
            "driver": driver_version(), "cuda": torch.version.cuda, "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        }  # fmt: skip
    return found


def driver_version() -> str:
    """Version of the NVIDIA driver, empty where it does not tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return ""


def nvml_device(device_uuid: str) -> Any:
    """The driver's handle of a GPU, or of the slice of one (MIG); None where it does not know the UUID."""
    import pynvml

    bare = device_uuid.removeprefix("GPU-").removeprefix("MIG-")
    for uuid in (f"GPU-{bare}", f"MIG-{bare}"):
        try:
            pynvml.nvmlInit()
            return pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:
            continue
    return None


def sm_clock_mhz(device_uuid: str) -> int | None:
    """SM clock of the GPU now, in MHz; None where the driver does not tell, as for a slice of a GPU (MIG)."""
    import pynvml

    device = nvml_device(device_uuid)
    try:
        return None if device is None else pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)
    except pynvml.NVMLError:
        return None


if __name__ == "__main__":
    print(json.dumps(environment()))

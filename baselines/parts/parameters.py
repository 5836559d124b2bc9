"""A system's own layer over the workload's tensors, so that nothing is copied.

The layer is made on the meta device, where its parameters take no memory, and then given ours.
"""

from __future__ import annotations

from typing import Any

import torch


def put(system: str, module: Any, tensors: dict[str, torch.Tensor], same_dtype: bool = False) -> None:
    """Makes each of the tensors itself the parameter of that name.

    Raises ValueError if the module wants another shape, or with `same_dtype` another dtype.
    """
    for name, tensor in tensors.items():
        wanted = getattr(module, name)
        if wanted.shape != tensor.shape or (same_dtype and wanted.dtype != tensor.dtype):
            raise ValueError(
                f"this {system} wants {name} as {list(wanted.shape)} {wanted.dtype}, the workload has "
                f"{list(tensor.shape)} {tensor.dtype}: the adapter knows another version"
            )
        setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))


def check_none_left(system: str, layer: torch.nn.Module) -> None:
    """Raises ValueError for a parameter or buffer that is still on the meta device, so nobody has given it a value."""
    left = [name for name, tensor in [*layer.named_parameters(), *layer.named_buffers()] if tensor.is_meta]
    if left:
        raise ValueError(f"this {system} has tensors that the adapter does not know: {', '.join(left)}")

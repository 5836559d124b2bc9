"""Whole models of transformers at their published size, with random weights: conf/whole/.

transformers and torch are imported when a model is built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from .arguments import PlanError
from .config import CONF, names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Whole:
    """A file of conf/whole/. architecture: transformers' name of the model's kind; config: what differs from the
    defaults of that kind."""

    name: str
    architecture: str
    config: dict[str, Any]


def whole_names() -> list[str]:
    return names("whole")


def load_whole(name: str) -> Whole:
    """The model of conf/whole/<name>.yaml. Raises PlanError that names all there are, or what is wrong in the file."""
    if name not in whole_names():
        raise PlanError(f"model={name}: whole models are {', '.join(whole_names())}")
    file = f"conf/whole/{name}.yaml"
    try:
        made = Whole(**yaml.safe_load((CONF / "whole" / f"{name}.yaml").read_text(encoding="utf-8")))
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise PlanError(f"{file}: {' '.join(str(error).split())}") from None
    if made.name != name or not isinstance(made.config, dict):
        raise PlanError(f"{file}: it needs name: {name}, an architecture and a config")
    return made


def build(whole: Whole, dtype: torch.dtype, device: str, seed: int, changes: dict[str, Any] | None = None) -> Any:
    """The model on the device, with weights as transformers draws them for training. changes: of its config.

    Raises ImportError without transformers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(whole.architecture, **(whole.config | (changes or {})))
    config.eos_token_id = config.pad_token_id = None  # random tokens mean nothing
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def experts_of(model: Any) -> dict[int, Any]:
    """The modules of a model that hold its experts, by the layer that they are in.

    Raises PlanError where it has none that follow transformers' interface for experts.
    """
    found: dict[int, Any] = {}
    for name, module in model.named_modules():
        if hasattr(module, "_apply_gate") and hasattr(module, "down_proj"):
            layer = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name)
            found[int(layer[1]) if layer else len(found)] = module
    if not found:
        raise PlanError(f"{type(model).__name__} has no experts that follow transformers' interface for experts")
    return found

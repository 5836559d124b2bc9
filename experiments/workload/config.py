"""The structured configs of conf/, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tritonmoe_bench import ROOT
from tritonmoe_bench.kernels.gating import GATINGS

from .settings import TimingSettings

METHOD = "counters"
LAUNCHES = ("graph", "eager")
TRAFFIC_METHODS = ("model", "interpreter", "counters")

CONF = ROOT / "conf"
PAPER_MODELS = ("mixtral", "deepseek_v3", "qwen2_paper")
"""The models of the TritonMoE paper."""
VARIANT = "fastvariant_"
"""How the names of ablations begin, which run only where they are named."""
MODES = {"layer": LAUNCHES, "stages": LAUNCHES, "traffic": TRAFFIC_METHODS, "energy": LAUNCHES}
"""By kind of study, what each point is measured by: launch modes, or methods of counting bytes."""
SHARED = {"counters": "traffic"}
"""Studies that write into the CSV of another one: each other file of conf/ has its own name in it."""
WANTED = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


class PlanError(ValueError):
    """A configuration that cannot be run; the message is one line and names what is allowed."""

    one_line = True  # for experiments/checkout.py


@dataclass
class ModelConfig:
    """A shape of conf/model/. `native_gating` names the model's own gating, see kernels/gating.py."""

    name: str = MISSING
    num_experts: int = MISSING
    top_k: int = MISSING
    hidden_dim: int = MISSING
    ffn_dim: int = MISSING
    native_gating: str = "softmax"

    def __post_init__(self) -> None:
        if self.native_gating not in GATINGS:
            raise PlanError(f"native_gating={self.native_gating}: allowed are {', '.join(GATINGS)}")


@dataclass
class GridConfig:
    """A product of values; num_experts, top_k and ffn_dim replace the model's own where they are given.

    implementations: of those that the study lists, the only ones that run these points; empty stands for all of them.
    """

    models: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    skew: list[float] = field(default_factory=lambda: [0.0])
    dtype: list[str] = field(default_factory=lambda: ["bf16"])
    quant: list[str] = field(default_factory=lambda: ["none"])
    num_experts: list[int] = field(default_factory=list)
    top_k: list[int] = field(default_factory=list)
    ffn_dim: list[int] = field(default_factory=list)
    implementations: list[str] = field(default_factory=list)


@dataclass
class StudyConfig:
    """A study of conf/study/. kind: `layer` times whole forwards, `stages` each stage of a pipeline, `traffic` counts
    bytes, `energy` takes power. An empty list of implementations stands for all there are but ablations, one of modes
    for all of the kind."""

    name: str = MISSING
    kind: str = "layer"
    grids: list[GridConfig] = field(default_factory=list)
    implementations: list[str] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)


@dataclass
class SweepConfig:
    """conf/config.yaml says what each key means."""

    model: ModelConfig | None = None
    study: StudyConfig = field(default_factory=StudyConfig)
    timing: TimingSettings = field(default_factory=TimingSettings)
    tokens: Any = None
    skew: Any = None
    dtype: Any = None
    tp: Any = None
    ep: Any = None
    gating: str = "softmax"
    quant: Any = None
    seed: int = 0
    implementations: Any = None
    modes: Any = None
    results: str = "results"
    timeout_s: int = 300
    dry_run: bool = False
    list: bool = False
    force: bool = False
    new_run: bool = False
    strict: bool = False


SECTIONS: dict[str, Any] = {"model": ModelConfig, "study": StudyConfig, "timing": TimingSettings}
"""By folder of conf/, which is also a key of SweepConfig, what its files hold."""


def names(group: str) -> list[str]:
    """The files of conf/<group>/, by stem."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def model_names() -> list[str]:
    return names("model")


def load(group: str, name: str) -> Any:
    """What conf/<group>/<name>.yaml says. Raises PlanError that names all there are, or what is wrong in the file."""
    if name not in names(group):
        raise PlanError(f"{group}={name}: allowed are {', '.join(names(group))}")
    file = f"conf/{group}/{name}.yaml"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SECTIONS[group]), OmegaConf.load(CONF / group / f"{name}.yaml"))
        found: Any = OmegaConf.to_object(merged)
    except yaml.YAMLError as error:
        raise PlanError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:
        known = error.object_type if is_dataclass(error.object_type) else SECTIONS[group]
        keys = ", ".join(key.name for key in fields(known))
        raise PlanError(f"{file}: {str(error).splitlines()[0]}; its keys are {keys}") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"{file}: {' '.join(str(error).split())}") from None
    own = SHARED.get(name, name)
    if group != "timing" and found.name != own:
        raise PlanError(f"{file}: name={found.name}: must be {own}, so that no rows carry another one's name")
    return found


def load_model(name: str) -> ModelConfig:
    """The shape of conf/model/<name>.yaml. Raises PlanError that names all there are."""
    return load("model", name)

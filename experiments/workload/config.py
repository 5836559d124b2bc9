"""The structured configs of conf/, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tritonmoe_bench import ROOT
from tritonmoe_bench.kernels.gating import GATINGS

from .arguments import PlanError, key
from .case import DTYPES, MAX_TOKENS, QUANTS
from .layer import LAYERS, Layer
from .recorded import DRAWN
from .recorded import names as recordings
from .settings import TimingSettings

CONF = ROOT / "conf"
PAPER_MODELS = ("mixtral", "deepseek_v3", "qwen2_paper")
"""The models of the TritonMoE paper."""
VARIANT = "fastvariant_"
"""How the names of ablations begin, which run only where they are named."""
SHARED = {"counters": "traffic"}
"""Studies that write into the CSV of another one: each other file of conf/ has its own name in it."""


@dataclass
class ModelConfig:
    """A shape of conf/model/, with what its layer is in the model itself, which `layer=native` asks for.

    native_gating: a name of kernels/gating.py; native_quant: the weight format that the model is published in;
    native_lacks: why `layer=native` cannot be asked for, empty if it can; the other fields are those of `Layer`.
    """

    name: str = MISSING
    num_experts: int = MISSING
    top_k: int = MISSING
    hidden_dim: int = MISSING
    ffn_dim: int = MISSING
    native_gating: str = "softmax"
    native_quant: str = "none"
    native_lacks: str = ""
    activation: str = "silu"
    router_bias: bool = False
    float32_router: bool = False
    expert_bias: bool = False
    shared_ffn: int = 0
    shared_gate: bool = False
    weights_on_input: bool = False

    def __post_init__(self) -> None:
        for name, known in (("native_gating", GATINGS), ("native_quant", QUANTS)):
            if getattr(self, name) not in known:
                raise PlanError(f"{name}={getattr(self, name)}: allowed are {', '.join(known)}")

    def facts(self) -> Layer:
        """The model's own layer. Raises PlanError for one that cannot be, or is not built here."""
        if self.native_lacks:
            raise PlanError(f"layer=native: not of {self.name}, {self.native_lacks}")
        try:
            return Layer(**{each.name: getattr(self, each.name) for each in fields(Layer)})
        except ValueError as error:
            raise PlanError(f"model={self.name}: {error}") from None


@dataclass
class GridConfig:
    """A product of values; num_experts, top_k and ffn_dim replace the model's own where they are given.

    tp, ep: into how many shards the layer is cut, as of `SweepConfig`.
    implementations: names of systems or sets; of those that the study lists, only these run the points of the grid.
    Empty stands for all of them.
    """

    models: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    skew: list[float] = field(default_factory=lambda: [0.0])
    dtype: list[str] = field(default_factory=lambda: ["bf16"])
    quant: list[str] = field(default_factory=lambda: ["none"])
    routing: list[str] = field(default_factory=lambda: [DRAWN])
    layer: list[str] = field(default_factory=lambda: ["plain"])
    tp: list[int] = field(default_factory=lambda: [1])
    ep: list[int] = field(default_factory=lambda: [1])
    num_experts: list[int] = field(default_factory=list)
    top_k: list[int] = field(default_factory=list)
    ffn_dim: list[int] = field(default_factory=list)
    implementations: Any = None


@dataclass
class StudyConfig:
    """A study of conf/study/. kind: `layer` times whole forwards, `stages` each stage of a pipeline, `traffic` counts
    bytes, `energy` takes power, `endtoend` times decode steps of whole models, `trace` times each kernel of a forward;
    others are files of experiments/measure. implementations: names of systems or sets of conf/systems.yaml, one or a
    list; empty stands for all there are but ablations. An empty list of modes stands for all of the kind."""

    name: str = MISSING
    kind: str = "layer"
    grids: list[GridConfig] = field(default_factory=list)
    implementations: Any = None
    modes: list[str] = field(default_factory=list)


def names(group: str) -> list[str]:
    """The files of conf/<group>/, by stem."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def model_names() -> list[str]:
    return names("model")


@dataclass
class SweepConfig:
    """The keys of a sweep. What is None comes from the study."""

    model: ModelConfig | None = key(
        None, "a shape, or a list of shapes; model.num_experts=64 and the like change one; shapes are", model_names
    )
    study: StudyConfig = key(StudyConfig, "points and systems; the default is adhoc", lambda: names("study"))
    timing: TimingSettings = key(
        TimingSettings,
        "how long a latency is sampled; timing.samples=80 and the like change it",
        lambda: names("timing"),
    )
    tokens: Any = key(None, f"batch sizes, 1 to {MAX_TOKENS}; one number or a list")
    skew: Any = key(None, "Zipf exponents of the experts' popularity, 0 is uniform; one number or a list")
    dtype: Any = key(None, "one or a list of", DTYPES)
    tp: Any = key(None, "tensor-parallel shard: one of so many equal slices of ffn_dim; one number or a list")
    ep: Any = key(
        None,
        "expert-parallel shard: one of so many equal groups of experts; tokens are those that arrive at this GPU, and "
        "each chooses top_k of its experts (model.top_k=1 where a token arrives once per expert); one number or a list",
    )
    gating: str = key("softmax", "one of", [*GATINGS, "native (the model's own)"])
    quant: Any = key(
        None, "how the experts' weights are packed: one or a list of", [*QUANTS, "native (as the model is published)"]
    )
    routing: Any = key(
        None,
        f"{DRAWN}, from skew and seed, or recorded: <file>, of which every layer is a point, or <file>:<layer>; the "
        "file is a path to an .npz, or a name of conf/recorded; one or a list of",
        lambda: [DRAWN, *recordings()],
    )
    layer: Any = key(
        None,
        "plain, with softmax gating and SwiGLU experts, or native, as in the model: its own gating, activation, biases "
        "and shared experts; one or a list of",
        LAYERS,
    )
    seed: int = key(0, "of routing, activations and weights")
    implementations: Any = key(
        None,
        "systems, one or a list; list=true prints them all; the sets of conf/systems.yaml are",
        lambda: systems(),
    )
    modes: Any = key(None, "one or a list; launch modes graph and eager, or in a traffic study its methods of counting")
    results: Path = key(ROOT / "results", "folder; rows go to <results>/<device>/<study>.csv")
    timeout_s: int = key(300, "seconds for one point of one system, compilation included")
    dry_run: bool = key(False, "print points, systems, minutes and memory, and run nothing")
    list: bool = key(False, "print every system, its version and whether it runs here")
    force: bool = key(False, "measure again what this run already holds")
    retry: bool = key(False, "measure again what of it has failed, and only that")
    new_run: bool = key(False, "move the current run into the archive and start one")
    strict: bool = key(False, "exit with 1 if an adapter is broken, or a row is incorrect, error or timeout")
    models: Any = key(None, "")  # what a list behind model becomes


SECTIONS: dict[str, Any] = {"model": ModelConfig, "study": StudyConfig, "timing": TimingSettings}
"""By folder of conf/, which is also a key of SweepConfig, what its files hold."""


def systems() -> dict[str, list[str]]:
    """The named sets of systems of conf/systems.yaml, with the sets that they name spelled out. Raises PlanError."""
    file = "conf/systems.yaml"
    try:
        read: Any = yaml.safe_load((CONF / "systems.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"{file}: {' '.join(str(error).split())}") from None
    sets: dict[str, list[str]] = {}
    for name, members in read.items():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise PlanError(f"{file}: {name}: a list of names is needed")
        sets[name] = [each for member in members for each in sets.get(member, [member])]
    return sets


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

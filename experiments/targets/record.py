"""Records every kernel launch that our pipelines would do on a target, with no GPU, and prints it as a line of JSON.

    python -m tritonmoe_bench.experiments.targets.record gfx942 [--brief] [--systems tritonmoe ...]

Whole forwards run on tensors without storage, in a process that takes its GPU for the target. Triton's binder makes of
each launch what it would compile, and is stopped there: types, constants, alignments and options are those of the real
launch functions and of the tiles that they choose for the target, so that a new kernel or tile is found by itself.
Where the target is the GPU of a tuned table, all entries of the table are recorded, and then what the heuristic says.
Of systems of others, which are named, kernels that tune themselves are recorded with each of their configurations.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch._subclasses import fake_tensor

from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K
from tritonmoe_bench.kernels.fast import choose, choose_packed, tuned
from tritonmoe_bench.kernels.fast.layer import fast_moe
from tritonmoe_bench.kernels.gating import GATINGS
from tritonmoe_bench.kernels.stream import STREAM_TILES, stream

from ..implementation.contract import Implementation, Status
from ..implementation.registry import get, implementations
from ..workload.case import DTYPES, Case
from ..workload.config import PAPER_MODELS, ModelConfig, load_model, model_names
from .device import Blank, pretend
from .gpus import TARGETS
from .others import NOT_HERE, NotHere, systems_of_others

FAMILIES = ("paper", "fast")
"""Families of implementations whose kernels are ours, but for the ablations, whose tiles are nobody's default."""
EVERY_TOKENS = range(1, 513)
"""Batch sizes at which an implementation is asked for its configuration."""
SOME_TOKENS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 8192)
"""Batch sizes at which a forward is recorded, whatever the configuration."""
WIDE = (
    (512, 10, "softmax_renorm"), (512, 22, "kimi_k2"), (896, 16, "softmax"), (160, 6, "deepseek_v3"),
    (128, MAX_TOP_K, "softmax"), (MAX_EXPERTS, MAX_TOP_K, "sigmoid_renorm"), (MAX_EXPERTS, MAX_TOP_K, "deepseek_v3"),
)  # fmt: skip
"""(num_experts, top_k, gating) that no model in conf/ has: more experts, more of them at once, odd groups."""
NATIVE = ("gpt_oss_20b", "qwen3_next_80b_a3b", "llama_4_scout")
"""Models of which the native layer is recorded too: biases and a clamped activation; a shared expert with a gate;
weights on the experts' input."""
SHARD = (256, 8, 7168, 256)
"""(num_experts, top_k, hidden_dim, ffn_dim) of an eighth of DeepSeek-V3: sums of down are short, those of gate and up
long, which has tiles of its own."""
FLOAT32_ROUTER = Case("float32 router", 256, 8, 7168, 2048, tokens=1)
"""What is recorded with a router in float32."""
SIZES = ("FFN", "HIDDEN", "K", "N", "SPAN", "STRIDE_N")
"""Constants of the kernels that are sizes of the layer, of which there are too many to compile each."""
TILES = ({"BLOCK_M", "BLOCK_N", "BLOCK_K"}, {"BLOCK_N", "LADDER"}, {"UP_N", "DOWN_N"})
"""Constants by which a grouped GEMM is known: these kernels take by far the longest to compile."""


def pipelines() -> list[Implementation]:
    return [implementation for implementation in implementations().values() if implementation.family in FAMILIES]


def models() -> list[ModelConfig]:
    """The shapes of conf/model/, those with the most to route first."""
    return sorted(map(load_model, model_names()), key=lambda model: -model.num_experts * model.top_k)


def cases(implementation: Implementation, brief: bool) -> Iterator[Case]:
    """What is recorded of an implementation: every model in bf16 with its own gating, or with plain softmax if that is
    not supported, at `SOME_TOKENS` and wherever the configuration changes, and so in each weight format; the paper's
    models also in fp16 and with both gatings, and one of them with every gating there is. Then the routings of `WIDE`
    and the native layers of `NATIVE`.

    brief: one token, and the most tokens of each configuration, for a model whose sizes the tiles divide and for one
    whose sizes they do not; in fp16 for one model. Of a tile of a grouped GEMM that several of them launch, `recorded`
    keeps one, and of ladders those that hold each of their tiles.
    """
    taken = set()
    for model in models():
        plain = layers(implementation, model)
        if brief:
            plain = [case for case in plain if case.gating == plain[0].gating]
            plain = plain[: 2 if model.name == PAPER_MODELS[0] else 1]
        packed = packed_layers(implementation, plain)
        for first in [*(plain if "none" in implementation.quants else ()), *packed]:
            every = [replace(first, tokens=tokens) for tokens in EVERY_TOKENS]
            runs = [list(run) for _, run in itertools.groupby(every, key=implementation.config)]
            if not brief:
                some = {replace(first, tokens=tokens) for tokens in SOME_TOKENS}
                yield from sorted(some | {case for run in runs for case in (run[0], run[-1])}, key=lambda c: c.tokens)
            elif model.name != "tiny":
                for run in runs:
                    divides = model.hidden_dim % 256 == model.ffn_dim % 256 == 0
                    kind = (first.dtype, first.quant, implementation.config(run[-1]), divides)
                    if kind not in taken:
                        taken.add(kind)
                        yield from (run[0], run[-1]) if run[0].tokens == 1 else (run[-1],)
    for num_experts, top_k, gating in WIDE:
        case = Case("wide", num_experts, top_k, 2048, 512, tokens=64, gating=gating)
        if implementation.answer(case).status is Status.OK:
            yield case
    if implementation.name == "fast":
        yield from (Case("shard", *SHARD, tokens) for tokens in (8, 16, 32))
    for model, tokens in itertools.product(map(load_model, NATIVE), (1, 8, 64)):
        case = Case(model.name, *_shape(model), tokens, gating=model.native_gating, layer="native", facts=model.facts())
        if implementation.answer(case).status is Status.OK:
            yield case


def layers(implementation: Implementation, model: ModelConfig) -> list[Case]:
    """One token of a model, in each dtype and with each gating that is recorded of it."""
    papers = model.name in PAPER_MODELS
    gatings = [model.native_gating, "softmax", *(GATINGS if papers and GATINGS[model.native_gating].groups > 1 else ())]
    every = [
        Case(model.name, *_shape(model), tokens=1, dtype=dtype, gating=gating)
        for dtype, gating in itertools.product(DTYPES, dict.fromkeys(gatings))
    ]
    packed = "none" not in implementation.quants  # `packed_layers` asks for each format
    supported = [case for case in every if packed or implementation.answer(case).status is Status.OK]
    return supported if papers else supported[:1]


def _shape(model: ModelConfig) -> tuple[int, int, int, int]:
    return model.num_experts, model.top_k, model.hidden_dim, model.ffn_dim


def packed_layers(implementation: Implementation, plain: list[Case]) -> list[Case]:
    """The first of the cases with its weights in each format that the implementation and its shape allow."""
    packed = []
    for case, quant in itertools.product(plain[:1], implementation.quants):
        if quant != "none":
            with contextlib.suppress(ValueError):  # of a shape that the format cannot hold
                packed.append(replace(case, quant=quant))
    return [case for case in packed if implementation.answer(case).status is Status.OK]


def size_class(size: int) -> str:
    """What a kernel can tell of a size: by how much it divides, and whether it makes but few steps of a loop."""
    return f"{'short ' if size <= 1024 else ''}multiple of {min(size & -size, 256)}"


def compiled_alike(launch: dict[str, Any], brief: bool) -> tuple:
    """Launches with the same key differ only in what no kernel branches on: the size of the layer inside of its
    `size_class`, the number of experts inside of its power of two, and the values of run-time counts.

    brief: a grouped GEMM has one key for a tile, whatever the layer.
    """
    key: list[Any] = [launch["module"], launch["kernel"]]
    one_for_a_tile = brief and any(launch["arguments"].keys() >= tile for tile in TILES)
    for name, (kind, value, alignment) in launch["arguments"].items():
        if kind == "constexpr" and name.isupper():
            if one_for_a_tile and name in (*SIZES, "TOP_K"):
                continue
            if name in SIZES:
                value = size_class(value)
            elif name == "NUM_EXPERTS":
                value = bool(value & (value - 1))
            key.append((name, value))
        elif str(kind).startswith(("*", "tensordesc")) or name.startswith("stride"):
            key.append((name, kind, alignment))
    return (*key, *sorted(launch["options"].items()))


def record(launches: list[dict[str, Any]]) -> None:
    """From now on a launch adds what it would compile to `launches`, and does nothing else.

    The lines where a kernel stands, which Triton's key of it holds, are no part of its source here: they are left out
    of what is compiled, too.
    """
    triton.JITFunction.starting_line_number = property(lambda kernel: 0, lambda kernel, line: None)

    def hook(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        names = list(compile["signature"])
        constants = {names[path[0]]: value for path, value in compile["constants"].items() if len(path) == 1}
        aligned = {names[path[0]]: str(value) for path, value in compile["configs"][0].items() if len(path) == 1}
        launches.append({
            "module": fn.module, "kernel": fn.name, "source": fn.jit_function.cache_key,
            "specialization": compile["specialization_data"],
            "arguments": {
                name: (str(kind), constants.get(name), aligned.get(name)) for name, kind in compile["signature"].items()
            },
            "options": {name: compile[name] for name in ("num_warps", "num_stages", "num_ctas")},
        })  # fmt: skip
        return True

    triton.knobs.runtime.jit_cache_hook = hook


def forwards(brief: bool, others: Sequence[Implementation] = ()) -> Iterator[tuple[str, Case | None, Any]]:
    """(implementation, case, a thunk that runs one forward of it): of the others, if there are some; else of ours,
    first what the target's tuned table has, then without the table whatever else there is, the streaming limit's
    kernel last."""
    if others:
        for implementation in others:
            for case in cases(implementation, brief):
                yield implementation.name, case, functools.partial(forward, implementation, case)
        return
    fast = get("fast")
    for case in tuned_cases(fast, brief):
        yield fast.name, case, functools.partial(forward, fast, case)
    choose.tuned_tiles = choose_packed.tuned_tiles = lambda *_: None
    for implementation in pipelines():
        for case in cases(implementation, brief):
            yield implementation.name, case, functools.partial(forward, implementation, case)
    for tokens in (1, 64, 256):
        yield fast.name, replace(FLOAT32_ROUTER, tokens=tokens), functools.partial(with_float32_router, tokens)
    for tile in STREAM_TILES:

        def read(tile: Any = tile) -> None:
            words = torch.empty((8, 2**20), dtype=torch.int32, device="cuda")
            stream(words, torch.empty(4, dtype=torch.int32, device="cuda"), tile)

        yield "stream", None, read


def tuned_cases(fast: Implementation, brief: bool) -> list[Case]:
    """A case for every entry of the tuned table of the device that this process takes its GPU for; brief: for one of
    each configuration."""
    table = tuned.load(tuned.table_path(torch.device("cuda", 0)))
    every = [
        Case("tuned", *layer[1:], tokens=tokens, quant=layer[0])
        for layer, entries in table.items()
        for tokens in entries
    ]
    return list({fast.config(case): case for case in every}.values()) if brief else every


def forward(implementation: Implementation, case: Case) -> None:
    """One forward, on tensors without storage."""
    weights: Any = Blank(case)
    implementation.build(case, weights)(weights.empty(case.tokens, case.hidden_dim))


def with_float32_router(tokens: int) -> None:
    """One forward of `fast`, as `forward`, with the router's weight in float32."""
    case = replace(FLOAT32_ROUTER, tokens=tokens)
    weights: Any = Blank(case)
    router = weights.empty(case.num_experts, case.hidden_dim, dtype=torch.float32)
    x = weights.empty(tokens, case.hidden_dim)
    fast_moe(x, router, weights.gate_up(), weights.down(), case.top_k, case.gate)


def recorded(brief: bool, others: Sequence[Implementation] = ()) -> list[dict[str, Any]]:
    """One launch of each kind, the least specialised, with the implementations that do it and one case in words."""
    launches: list[dict[str, Any]] = []
    record(launches)
    found: dict[tuple, dict[str, Any]] = {}
    with fake_tensor.FakeTensorMode():
        for name, case, run in forwards(brief, others):
            run()
            for launch in launches:
                launch |= {"dtype": case.dtype if case else "", "case": str(case or ""), "implementations": [name]}
                kept = found.setdefault(compiled_alike(launch, brief), launch)
                users = sorted({*kept["implementations"], name})
                if _specialized(launch) < _specialized(kept):
                    kept.update(launch)
                kept["implementations"] = users
            launches.clear()
    return without_repeated_tiles(found) if brief else list(found.values())


def without_repeated_tiles(found: dict[tuple, dict[str, Any]]) -> list[dict[str, Any]]:
    """The launches without those of ladders that have no tile of their own: each is on a longer ladder of a launch
    that agrees in all else.

    A kernel with a ladder compiles a branch for each of its tiles, whatever the others are.
    """
    seen: dict[tuple, set[str]] = {}
    repeated: set[int] = set()
    for key, launch in sorted(found.items(), key=lambda entry: -len(_ladder(entry[1]))):
        ladder = _ladder(launch)
        rest = tuple(part for part in key if part[:1] != ("LADDER",))
        known = seen.setdefault(rest, set())
        if ladder and known.issuperset(ladder):
            repeated.add(id(launch))
        known.update(ladder)
    return [launch for launch in found.values() if id(launch) not in repeated]


def _ladder(launch: dict[str, Any]) -> list[str]:
    """The tiles of the ladder of a launch, in words; none without one."""
    _, tiles, _ = launch["arguments"].get("LADDER", ("", None, None))
    return list(map(str, tiles or ()))


def _specialized(launch: dict[str, Any]) -> tuple[int, int]:
    """How often the sizes of the layer can be halved, up to 256, and how many run-time arguments have a value or an
    alignment: what the compiler may rely on."""
    arguments = launch["arguments"].items()
    return (
        sum(min(value & -value, 256).bit_length() for name, (_, value, _) in arguments if name in SIZES and value),
        sum((kind == "constexpr" and not name.isupper()) + bool(align) for name, (kind, _, align) in arguments),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--brief", action="store_true", help="a few forwards for each configuration and no more")
    parser.add_argument("--systems", nargs="*", default=[], help="systems of others, in the place of ours")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # a tensor without storage has no address
    pretend(TARGETS[chosen.target])
    try:
        others = systems_of_others(chosen.systems)
    except NotHere as lacking:
        print(lacking, file=sys.stderr)
        sys.exit(NOT_HERE)
    for launch in recorded(chosen.brief, others):
        print(json.dumps({"target": chosen.target, **launch}))


if __name__ == "__main__":
    main()

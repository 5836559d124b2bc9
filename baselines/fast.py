"""`fast`: our own forward, with its own choice of tiles, for the harness."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tritonmoe_bench.experiments.implementation.contract import (
    NEEDS,
    OK,
    Case,
    Check,
    Forward,
    Implementation,
    Weights,
    unsupported,
)

from .parts import own
from .parts.router import by_router

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from tritonmoe_bench.kernels.fast.tile_types import AnyTiles

SLOT_TOKENS = 64
"""Up to so many tokens slots are faster for the shared expert than GEMMs of its own beside the others."""

SCHEDULED = MappingProxyType({15: 12})
"""The revisions, as `by_router` takes them, of the systems that take the path with a schedule alone: raised whenever
those of `Fast` are."""


class Fast(Implementation):
    name = "fast"
    family = "fast"
    # What each revision changed:
    # 1 (commit 49c8f03): the first that was measured.
    # 2 (commit 5f788fe): the weights of gate and up are one operand.
    # 3 (commit f14f8e4): the routing ranks up to 128 experts by comparing all with all.
    # 4: both GEMMs choose their tile from one ladder, and read both operands untransposed; in float16 the down GEMM
    #    multiplies by the routing weights, and not the combine. Above 128 experts the routing computes the weights of
    #    the chosen again instead of selecting them.
    # 5: in fp8_block one token of small experts takes the output-centric path, and tiles go by the length of sums.
    # 6: weights of four bits wait for the products of a step before the next one is unpacked into the same registers;
    #    int4 unpacks in 9 instructions a word instead of 15, and takes tiles of 48 and 64 rows; one token in four bits
    #    takes an output-centric path. In fp8_block a step is two blocks of columns for low blocks, and gate and up of
    #    one token have several steps in flight.
    # 7: in 16 bits, where weights come by bulk copies (few large experts, many tokens), blocks of up to 16 rows wait
    #    for the products of a step before the next one is loaded into the same registers. In four bits, blocks of
    #    more than 48 rows on average are of up to 96, and a tail's products run beside those of the tile.
    #    The router: logits of up to 16 tokens in smaller pieces, top-k of each token by one warp. The output-centric
    #    path: down has four steps on their way, fp8_block other tiles and two tokens, 256 small experts three.
    # 8: the output-centric path: several tokens read what they share once from memory, two take it from 32 experts on,
    #    three from 128, four of small ones; down loads its values thread by thread in 16 bits; other tiles.
    # 9: programs of one token in a grid of one dimension again, x as a row of a matrix: the compiler had taken fewer
    #    registers for what is on its way; between the two GEMMs 16 bits, over plain weights; two tokens for matrices of
    #    up to 3 * 2**22 weights, four of small experts from 128 on, in fp8_block eight; other tiles for down.
    # 10: up to 32 tokens, where the tuned table has nothing else, the joined path: both GEMMs in one grid, no schedule.
    #    In 16 bits up to 3 * 2**22 weights a matrix, and the output-centric path for fewer tokens than before; in
    #    fp8_block up to 32 tokens of small experts and 8 of others; in four bits up to 16.
    # 11, but for one token: the joined path for larger matrices too, with sums of down in parts where they are long, up
    #    to 16 tokens there. With a schedule both GEMMs are one grid for matrices of up to 3 * 2**22 weights in 16 bits,
    #    and for small experts in fp8_block, whose tiles are low up to 8 or 16 rows an expert.
    # 12, for 17 to 128 tokens: the router's programs have 64 tokens, four warps and all of their piece on its way.
    # 13, above 128 tokens: logits of up to 512 tokens by our own kernel, where PyTorch's GEMM had been; above 1024
    #    slots two placing programs a multiprocessor where there are more than 128 experts.
    # 14, for one and two tokens: logits by twice to four times the warps.
    # 15: top-k of 128 experts and more from four neighbours in order, of softmax without a second maximum for the
    #    score, whose total is summed beside the choice; a group's score by a maximum and a count; biases are loaded
    #    before the wait for the logits. The combine of few programs has one warp each, of more eight. The table of row
    #    blocks has gaps, so that no placing program counts all experts; above 1024 slots they have eight warps again.
    revision, revisions_up_to = by_router({15: 15})
    source = "kernels/fast/layer.py"
    needs_gpu = False
    experts_implementation = "tritonmoe_fast"
    quants = ("none", "fp8_block", "mxfp4", "int4", "int4_g32")
    facts = tuple(NEEDS)

    def version(self) -> str:
        from tritonmoe_bench import __version__

        return __version__

    def check(self, case: Case) -> Check:
        from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

        if case.quant != "none" and case.facts.shared_ffn and not _shared_slots(case):
            return unsupported(
                f"quant={case.quant}: packed, a shared expert has to be some times as wide as the others"
            )
        if case.num_experts > MAX_EXPERTS or case.top_k > MAX_TOP_K:
            return unsupported(f"takes up to {MAX_EXPERTS} experts and top_k up to {MAX_TOP_K}")
        return OK

    def activations(self, case: Case) -> str:
        from tritonmoe_bench.kernels.fast.tile_types import FewTiles

        packed = case.quant != "none" and not isinstance(_tiles(case), FewTiles)
        return _packed_activations(case) if packed else "a16"

    def build(self, case: Case, weights: Weights) -> Forward:
        return with_shared_slots(case, weights) if _takes_slots(case) else with_shared_beside(case, weights)

    def stages(self, case: Case, weights: Weights, x: torch.Tensor) -> list[tuple[str, Callable[[], object]]]:
        """router: logits and top-k; schedule: order and row blocks, in place of the paper's permute; expert_ffn: both
        GEMMs; unpermute_combine. The output-centric path has a router and an expert_ffn, which combines; the joined one
        no schedule. With both GEMMs in one grid counters are set to 0 in expert_ffn, which a forward does before."""
        if case.quant != "none" or case.facts.needs:
            return []
        import torch

        from tritonmoe_bench.kernels.fast.blocks import Blocks, launch_place
        from tritonmoe_bench.kernels.fast.experts import Experts
        from tritonmoe_bench.kernels.fast.few_down import launch_few_down
        from tritonmoe_bench.kernels.fast.few_gate_up import launch_few_gate_up
        from tritonmoe_bench.kernels.fast.forward import launch_combine
        from tritonmoe_bench.kernels.fast.gemm import launch_down, launch_gate_up
        from tritonmoe_bench.kernels.fast.joined import launch_joined
        from tritonmoe_bench.kernels.fast.logits import launch_logits
        from tritonmoe_bench.kernels.fast.one_grid import launch_one_grid
        from tritonmoe_bench.kernels.fast.routing import launch_top_k
        from tritonmoe_bench.kernels.fast.tile_types import FewTiles, JoinedTiles

        router, gate_up, down = weights.router(), weights.gate_up(), weights.down()
        bias, tiles = weights.correction_bias(), _tiles(case)

        def route() -> tuple[torch.Tensor, torch.Tensor]:
            return launch_top_k(launch_logits(x, router), case.top_k, case.gate, bias)

        experts, scores = route()
        if isinstance(tiles, FewTiles):

            def few() -> torch.Tensor:
                inner = launch_few_gate_up(x, gate_up, experts, scores, tiles.gate_up)
                return launch_few_down(inner, down, experts, scores, torch.empty_like(x), tiles.down)

            return [("router", route), ("expert_ffn", few)]

        if isinstance(tiles, JoinedTiles):
            arrivals = torch.empty_like(experts)

            def joined() -> torch.Tensor:
                zeros = arrivals.zero_()
                return launch_joined(x, None, experts, scores, zeros, Experts(gate_up, down), tiles, x.dtype)

            outputs = joined()
            return [("router", route), ("expert_ffn", joined),
                    ("unpermute_combine", lambda: launch_combine(outputs, scores, torch.empty_like(x)))]  # fmt: skip

        def place() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
            return launch_place(experts, case.num_experts, tiles.block_m, counted=tiles.one_grid)

        blocks = Blocks(scores, *place())

        def ffn() -> torch.Tensor:
            if blocks.arrivals is not None:
                blocks.arrivals.zero_()
                return launch_one_grid(x, None, Experts(gate_up, down), blocks, case.top_k, tiles, x.dtype)
            return launch_down(launch_gate_up(x, gate_up, blocks, case.top_k, tiles), down, blocks, tiles)

        out = ffn()
        return [("router", route), ("schedule", place), ("expert_ffn", ffn),
                ("unpermute_combine", lambda: launch_combine(out, scores))]  # fmt: skip

    def config(self, case: Case) -> str:
        shared = f" shared={'slots' if _takes_slots(case) else 'beside'}" if case.facts.shared_ffn else ""
        return f"{_tiles(case)}{shared}"

    def planned_config(self, case: Case) -> str:
        return self.config(case)


def with_shared_beside(case: Case, weights: Weights) -> Forward:
    """`fast_moe`, and a shared expert in PyTorch's GEMMs after it."""
    from tritonmoe_bench.kernels.fast.layer import fast_moe

    from .parts.shared_expert import adds_shared
    from .parts.silu_gate import silu_and_mul

    layer = (weights.router(), *_experts(case, weights), case.top_k, case.gate)
    options = {"router_bias": weights.router_bias(), "correction_bias": weights.correction_bias(),
               **_epilogue(case, weights)}  # fmt: skip
    add_shared = adds_shared(case, weights, silu_and_mul)
    return lambda x: add_shared(x, fast_moe(x, *layer, **options))


def with_shared_slots(case: Case, weights: Weights) -> Forward:
    """`fast_experts` with the shared expert as more of them, which every token has slots for; the tiles are those that
    the layer has without it."""
    from tritonmoe_bench.kernels.fast.layer import fast_experts
    from tritonmoe_bench.kernels.fast.route import Router
    from tritonmoe_bench.kernels.fast.shared import append_shared

    routing = (case.top_k, case.gate, weights.correction_bias(), weights.router_bias())
    router, gate = Router(weights.router(), *routing), weights.shared_router()
    gate = None if gate is None else gate[0]
    shared = range(case.num_experts, case.num_experts + _shared_slots(case))
    experts, tiles = _experts(case, weights, with_shared=True), _tiles(case)
    options = {"tiles": tiles, **_epilogue(case, weights)}

    def forward(x: torch.Tensor) -> torch.Tensor:
        slots = append_shared(x, *router.choose(x), shared, gate)
        return fast_experts(x, *experts, *slots, **options)

    return forward


def _takes_slots(case: Case) -> bool:
    """Whether the shared expert has slots; packed, it has nothing else."""
    return bool(_shared_slots(case)) and (case.tokens <= SLOT_TOKENS or case.quant != "none")


def _shared_slots(case: Case) -> int:
    """How many experts the shared one can be: of the others' width, and within what the kernels take; else 0. Its gate
    belongs to its output, where weights on the input have no place for it."""
    from tritonmoe_bench.kernels.checks import MAX_EXPERTS, MAX_TOP_K

    slots, rest = divmod(case.facts.shared_ffn, case.ffn_dim)
    fits = case.num_experts + slots <= MAX_EXPERTS and case.top_k + slots <= MAX_TOP_K
    same = not case.facts.expert_bias and not (case.facts.weights_on_input and case.facts.shared_gate)
    return slots if fits and same and not rest else 0


def _experts(case: Case, weights: Weights, with_shared: bool = False) -> tuple[Any, Any]:
    """Gate and up, and down, as tensors or packed."""
    if case.quant != "none":
        return weights.packed_gate_up(with_shared).prepared(), weights.packed_down(with_shared).prepared()
    return weights.gate_up(with_shared=with_shared), weights.down(with_shared=with_shared)


def _epilogue(case: Case, weights: Weights) -> dict[str, Any]:
    """Options of `fast_moe` and `fast_experts` for what a native layer has beside its products."""
    return {
        "activation": case.facts.activation, "weights_on_input": case.facts.weights_on_input,
        "gate_up_bias": weights.gate_up_bias(), "down_bias": weights.down_bias(),
    }  # fmt: skip


def _tiles(case: Case) -> AnyTiles:
    """What `fast_moe` chooses for a case on this machine."""
    from tritonmoe_bench.kernels.fast.choose import choose_tiles
    from tritonmoe_bench.kernels.fast.choose_packed import choose_packed_tiles, scheduled_tiles
    from tritonmoe_bench.kernels.fast.tile_types import JoinedTiles
    from tritonmoe_bench.kernels.formats import formats
    from tritonmoe_bench.kernels.target import target_of

    device, shape = own.device(), own.layer(case)
    kind = None if case.quant == "none" else formats()[case.quant]
    tiles = choose_packed_tiles(device, kind, shape, case.tokens) if kind else choose_tiles(device, *shape, case.tokens)
    if isinstance(tiles, JoinedTiles) and _takes_slots(case) and case.facts.weights_on_input:
        return scheduled_tiles(kind, target_of(device), shape, case.tokens)  # slots might give a token an expert twice
    return tiles


def _packed_activations(case: Case) -> str:
    """What `fast_moe` takes on this machine for weights in the format of the case."""
    from tritonmoe_bench.kernels.fast.choose_packed import default_activations
    from tritonmoe_bench.kernels.formats import formats
    from tritonmoe_bench.kernels.target import target_of

    return default_activations(formats()[case.quant], target_of(own.device()))

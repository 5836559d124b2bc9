"""Rows survive an edit that changes no number, and an edit that may change one is asked about, once."""

import ast
import hashlib
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tritonmoe_bench.baselines.fast import Fast
from tritonmoe_bench.baselines.parts import router
from tritonmoe_bench.experiments.measure import method, revisions
from tritonmoe_bench.experiments.workload.case import Case
from tritonmoe_bench.experiments.workload.config import load
from tritonmoe_bench.experiments.workload.routing import activations, draw_routing
from tritonmoe_bench.experiments.workload.settings import TimingSettings
from tritonmoe_bench.experiments.workload.weights import Weights

KERNEL = """
@triton.jit(do_not_specialize=["tokens"])
def _scale_kernel(x, y, tokens, BLOCK: tl.constexpr):
    '''y = 2 x.'''
    column = tl.arange(0, BLOCK)  # [BLOCK]
    tl.store(y + column, 2.0 * tl.load(x + column))
"""
REFORMATTED = """
@triton.jit(
    do_not_specialize=["tokens"]
)
def _scale_kernel(
    x, y,
    tokens, BLOCK: tl.constexpr
):
    '''Another docstring.'''
    # A comment.
    column = tl.arange(0, BLOCK)
    tl.store(
        y + column,
        2.0 * tl.load(x + column),
    )
"""
GOLDEN = {
    # case: (routing logits, experts, activations, one tile of the first expert's gate), a hash each
    Case("tiny", 8, 2, 128, 256, 16): ("f3d732e19df5", "2353cbb55bfa", "1e24908e792f", "cf14e88748b2"),
    Case("tiny", 8, 2, 128, 256, 64, skew=1.2, dtype="fp16"): (
        "d322fe079317",
        "076bc328a163",
        "e628d78632f8",
        "412d82031a49",
    ),
    Case("mixtral", 8, 2, 4096, 14336, 32, skew=1.2): ("bdeeba74c6d9", "d57a45e8f7e3", "da13b76b3e03", "9134c1307185"),
    Case("qwen3_30b_a3b", 128, 8, 2048, 768, 8, seed=3): (
        "9bc1b4f2efb6",
        "5dbeb57bafa5",
        "bcf03e2c2ff2",
        "2c6420b7b9e8",
    ),
    Case("deepseek_v3", 256, 8, 7168, 2048, 4, gating="deepseek_v3"): (
        "d9afebc5927a",
        "f21b79ef1bac",
        "4e548e59fdf2",
        "f2f8f5e170cd",
    ),
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one kernel family and one measurement, which a test may edit."""
    (tmp_path / "kernels" / "fast").mkdir(parents=True)
    (tmp_path / "experiments" / "measure").mkdir(parents=True)
    (tmp_path / "kernels" / "fast" / "scale.py").write_text(KERNEL, encoding="utf-8")
    layer = tmp_path / "experiments" / "measure" / "layer.py"
    layer.write_text("SAMPLES: int = 20\n\n\ndef measure_layer(case):\n    return case\n", encoding="utf-8")
    monkeypatch.setattr(revisions, "ROOT", tmp_path)
    return tmp_path


def asks(before):
    now = {"sources": revisions.hashes(), "revisions": {}, "method": {}}
    return revisions.differences({"sources": before, "revisions": {}, "method": {}}, now)


def test_reformatting_asks_nothing(checkout):
    before = revisions.hashes()
    (checkout / "kernels" / "fast" / "scale.py").write_text(REFORMATTED, encoding="utf-8")
    assert asks(before) == []


def test_every_file_reformatted_asks_nothing():
    for path in [*(revisions.ROOT / "kernels").rglob("*.py"), *(revisions.ROOT / "experiments").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        again = ast.parse(ast.unparse(tree))  # every comment and line break is gone
        assert [revisions.normalised(node) for node in tree.body] == [revisions.normalised(node) for node in again.body]


def test_moving_a_function_asks_nothing(checkout):
    before = revisions.hashes()
    family = checkout / "kernels" / "fast"
    (family / "elsewhere.py").write_text(
        "import triton\n" + (family / "scale.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (family / "scale.py").unlink()
    (checkout / "experiments" / "workload").mkdir()
    (checkout / "experiments" / "measure" / "layer.py").rename(checkout / "experiments" / "workload" / "layer.py")
    assert asks(before) == []


def test_a_renamed_variable_in_a_kernel_asks_once(checkout):
    before = revisions.hashes()
    path = checkout / "kernels" / "fast" / "scale.py"
    path.write_text(path.read_text(encoding="utf-8").replace("column", "place"), encoding="utf-8")
    (line,) = asks(before)
    assert line.startswith(
        "kernels/fast/_scale_kernel has changed: if a number can be another now, raise the revisions of"
    )
    recorded = revisions.hashes()  # what `--record` writes
    assert asks(recorded) == []


def test_the_path_of_a_few_tokens_has_revisions_of_its_own(checkout):
    family = checkout / "kernels" / "fast"
    for name in ("few_scale.py", "choose.py"):
        (family / name).write_text("LONGEST = 48\n", encoding="utf-8")
    before = revisions.hashes()
    (family / "few_scale.py").write_text("LONGEST = 24\nROWS = 2\n", encoding="utf-8")
    (family / "choose.py").write_text("LONGEST = 48\nFEW_WEIGHTS = 1\ndef few_tiles(): pass\n", encoding="utf-8")
    few = {line.split()[0].rpartition("/")[2]: line.partition("raise ")[2] for line in asks(before)}
    both = f"{revisions.OWNERS['kernels/fast']} and {revisions.FEW}"
    assert few == {
        "LONGEST": both, "ROWS": revisions.FEW, "few_tiles": revisions.FEW,
        "FEW_WEIGHTS": revisions.OWNERS["kernels/fast"],
    }  # fmt: skip


def test_each_revision_of_a_few_tokens_has_an_entry_of_its_own(monkeypatch):
    monkeypatch.setattr(Fast, "revisions_up_to", {2: 17, 16: 16})
    ours = revisions.current()["revisions"]
    assert [ours[name] for name in ours if revisions.scope(name)[0] == "fast"] == [Fast.revision, 17, 16]
    assert [most for system, most in map(revisions.scope, ours) if system == "fast"] == [None, 2, 16]


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("kernels/fast/scale.py", "2.0 * tl.load", "3.0 * tl.load"),
        ("kernels/fast/scale.py", "BLOCK: tl.constexpr", "BLOCK"),
        ("kernels/fast/scale.py", 'do_not_specialize=["tokens"]', ""),
        ("experiments/measure/layer.py", "return case", "return 2 * case"),
        ("experiments/measure/layer.py", "= 20", "= 10"),
    ],
)
def test_what_may_change_a_number_asks(checkout, path, old, new):
    before = revisions.hashes()
    text = (checkout / path).read_text(encoding="utf-8")
    assert old in text
    (checkout / path).write_text(text.replace(old, new), encoding="utf-8")
    assert len(asks(before)) == 1


def test_a_new_kernel_and_one_that_is_gone_ask(checkout):
    before = revisions.hashes()
    path = checkout / "kernels" / "fast" / "scale.py"
    path.write_text(path.read_text(encoding="utf-8").replace("_scale_kernel", "_double_kernel"), encoding="utf-8")
    assert [line.split(":")[0] for line in asks(before)] == [
        "kernels/fast/_double_kernel is new",
        "kernels/fast/_scale_kernel is gone",
    ]


def test_the_lock_is_of_this_code():
    lines = revisions.differences(revisions.locked(), revisions.current())
    assert not lines, "\n".join([*lines, "then: make revisions"])


def test_everything_of_ours_that_is_timed_is_under_the_lock():
    sources = revisions.locked()["sources"]
    for name in ("kernels/fast:_gate_up_kernel", "kernels/fast:launch_gate_up", "kernels/paper:launch_permute",
                 "kernels:_stream_kernel", "kernels/formats:FourBits", "experiments:time_calls",
                 "experiments:draw_routing", "experiments:trace_forward", "experiments:steadily",
                 "experiments:_rest"):  # fmt: skip
        assert name in sources
    elsewhere = {f"kernels/fast:{name}" for name in revisions.FEW_NAMES}
    assert elsewhere <= set(sources)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("kernels/fast/logits.py", "products // 256", "products // 512"),
        ("kernels/fast/logits.py", "SPLIT_TOKENS = 512", "SPLIT_TOKENS = 256"),
        ("kernels/fast/few_parts.py", "LONGEST, SCALED_LONGEST = 48, 32", "LONGEST, SCALED_LONGEST = 24, 32"),
        ("kernels/fast/routing.py", "cdiv(padded, 512)", "cdiv(padded, 256)"),
        ("kernels/fast/blocks.py", "block_s <= 1024", "block_s <= 2048"),
        ("kernels/fast/tiled.py", "TILE = 64", "TILE = 128"),
        ("kernels/launch.py", "grid = (*grid, 1, 1)[:3]", "grid = (*grid, 2, 1)[:3]"),
        ("kernels/fast/packed.py", "may_join(target, tokens)", "may_join(target, 1)"),
        ("experiments/measure/trace.py", "FORWARDS = 8", "FORWARDS = 2"),
        ("experiments/sweeping/steady.py", "SLOW = 1.05", "SLOW = 1.5"),
        ("experiments/sweeping/worker.py", "time.sleep(0.01)", "time.sleep(0.1)"),
    ],
)
def test_what_decides_a_launch_or_a_measurement_is_noticed(path, old, new, tmp_path, monkeypatch):
    text = (revisions.ROOT / path).read_text(encoding="utf-8")
    assert text.count(old) >= 1
    (tmp_path / path).parent.mkdir(parents=True)
    monkeypatch.setattr(revisions, "ROOT", tmp_path)
    (tmp_path / path).write_text(text, encoding="utf-8")
    before = revisions.hashes()
    (tmp_path / path).write_text(text.replace(old, new), encoding="utf-8")
    assert len(asks(before)) == 1


def test_a_row_states_the_versions_it_depends_on():
    default = asdict(TimingSettings())
    assert method.method_revision("layer", default, {"workload": 1, "latency": 2}) == "workload1+latency2+default"
    thorough = asdict(load("timing", "thorough"))
    assert method.method_revision("layer", thorough).endswith("+thorough")
    other = method.method_revision("layer", {**default, "samples": 41})
    assert other != method.method_revision("layer", default)
    assert other == method.method_revision("layer", {**default, "samples": 41})
    assert method.method_revision("traffic", default) == method.method_revision("traffic", thorough)


def test_a_new_router_asks_every_system_for_a_number(monkeypatch):
    monkeypatch.setattr(router, "UP_TO", {2: 14, 16: 15, 128: 12})
    monkeypatch.setattr(router, "BEYOND", 13)
    with pytest.raises(KeyError, match="15"):
        router.by_router({11: 2, 12: 3, 13: 4, 14: 5})
    revision, up_to = router.by_router({12: 3, 13: 4, 14: 5, 15: 6})
    assert (revision, up_to) == (4, {2: 5, 16: 6, 128: 3})
    assert router.by_router({12: 4, 13: 4, 14: 5, 15: 3}) == (4, {2: 5, 16: 3})


def test_every_version_of_the_method_has_its_reason():
    text = (revisions.LOCK.parent / "method.py").read_text(encoding="utf-8")
    for name, version in method.METHOD.items():
        (line,) = [line for line in text.splitlines() if line.strip('"').startswith(f"{name}: ")]
        assert f" {version}: " in line


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_the_workload_is_what_committed_rows_were_measured_on(case):
    """Another hash here means that rows measured before are of another workload: raise METHOD["workload"]."""
    routing = draw_routing(case)
    x = activations(case, routing, "cpu")
    gate, _, _ = Weights(case, "cpu").expert(0)
    found = (routing.logits, routing.experts.astype(np.int64), x.view(torch.int16), gate[:16, :16].view(torch.int16))
    hashes = tuple(hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()[:12] for part in found)
    assert hashes[:3] == GOLDEN[case][:3]
    if torch.__version__.startswith("2.13."):  # weights are drawn by PyTorch, whose 2.11 draws other numbers on the CPU
        assert hashes[3] == GOLDEN[case][3]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("mixtral", 8, 2, 4096, 14336, 32), "e5b15891a931ed93"),
        (Case("deepseek_v3", 256, 8, 7168, 2048, 512, skew=1.2), "18aca8c77ca12220"),
    ],
    ids=str,
)
def test_a_case_keeps_its_hash(case, expected):
    """Committed rows name their case by it; a new field of `Case` at its default stays out of it."""
    assert case.case_hash == expected

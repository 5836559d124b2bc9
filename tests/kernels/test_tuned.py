"""Tuned tables: what they hold comes back, what they cannot hold is one clear error, and who asks them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tritonmoe_bench.kernels.fast import tuned
from tritonmoe_bench.kernels.fast.choose import INTERPRETER, choose_tiles, heuristic_tiles
from tritonmoe_bench.kernels.fast.choose_packed import choose_packed_tiles, format_tiles
from tritonmoe_bench.kernels.fast.tile_types import HEIGHTS, FastTile, FastTiles, FewTile, FewTiles
from tritonmoe_bench.kernels.formats.fp8_block import Fp8Block
from tritonmoe_bench.kernels.formats.mxfp4 import Mxfp4
from tritonmoe_bench.kernels.target import target_of

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (8, 2, 4096, 14336)
TILED = FastTiles(64, FastTile(64, 64, 4, 4, 128, 3), FastTile(128, 64, 8, 5, 64, 6, True, True, True))
FEW = FewTiles(FewTile(2, 1024, 2), FewTile(4, 512, 4))
LAYER = ("none", *SHAPE)
TABLE = {
    ("fp8_block", *SHAPE): {8: replace(TILED, block_m=16), 32: None},
    ("none", 256, 8, 7168, 2048): {512: replace(TILED, dynamic=False)},
    LAYER: {64: None, 1: FEW, 8: TILED, 4: replace(TILED, gate_up=TILED.down)},
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some-gpu.json"
    tuned.save(path, TABLE)
    return path


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Makes this process take its GPU for one of a name; tables are in an empty folder."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)

    def pretend(name):
        shared = 227 * 1024
        properties = SimpleNamespace(name=name, shared_memory_per_block=shared, shared_memory_per_block_optin=shared)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        forget()
        return torch.device("cuda", 0)

    def forget():
        tuned._table_of.cache_clear()
        target_of.cache_clear()

    yield pretend
    forget()


def test_a_table_comes_back_as_it_was(path):
    assert tuned.load(path) == TABLE
    assert list(path.parent.iterdir()) == [path], "a partial file was left"


@pytest.mark.parametrize("block_m", HEIGHTS)
def test_every_height_comes_back(block_m, tmp_path):
    table = {LAYER: {1: replace(TILED, block_m=block_m)}}
    tuned.save(tmp_path / "t.json", table)
    assert tuned.load(tmp_path / "t.json") == table


def test_shapes_and_tokens_stand_in_order_so_that_two_tables_can_be_compared(path):
    shapes = json.loads(path.read_text(encoding="utf-8"))["shapes"]
    assert [(shape["quant"], shape["num_experts"]) for shape in shapes] == [
        ("fp8_block", 8),
        ("none", 8),
        ("none", 256),
    ]
    assert list(shapes[1]["tokens"]) == ["1", "4", "8", "64"]


def test_no_file_is_an_empty_table(tmp_path):
    assert tuned.load(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, FEW), (2, TABLE[LAYER][4]), (3, TABLE[LAYER][4]), (5, TILED), (8, TILED), (9, None), (31, None), (65, None)],
)
def test_the_next_larger_number_of_tokens_serves(tokens, expected):
    assert tuned.nearest(TABLE[LAYER], tokens) == expected


def test_no_entry_reaches_further_down_than_half_of_its_tokens():
    entries = {100: TILED}
    reached = [tokens for tokens in range(1, 201) if tuned.nearest(entries, tokens)]
    assert reached == list(range(100 // tuned.REACH, 101))


def edited(path, edit):
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def first(document, tokens="8"):
    return document["shapes"][1]["tokens"][tokens]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(version=3), "unknown keys version"),
        (lambda d: d["shapes"][0].pop("top_k"), "missing keys top_k"),
        (lambda d: d["shapes"][0].update(quant="fp9"), "quant='fp9': one of none, fp8_block"),
        (lambda d: d["shapes"][0].update(top_k=0), "top_k=0: a whole number above 0"),
        (lambda d: d["shapes"].append(d["shapes"][0]), "stands twice"),
        (lambda d: d["shapes"][0].update(tokens=[1]), "tokens must be an object"),
        (lambda d: d["shapes"][0]["tokens"].update({"-1": "heuristic"}), "tokens -1: tokens must be a whole number"),
        (
            lambda d: d["shapes"][0]["tokens"].update({"8": "best"}),
            "tokens 8: tiles must be 'heuristic' or have a kind",
        ),
        (lambda d: first(d).update(kind="WideTiles"), "kind, one of FastTiles, FewTiles"),
        (lambda d: first(d).update(block_m=80), "block_m=80: allowed are 16"),
        (lambda d: first(d).update(dynamic="yes"), "dynamic='yes': true or false"),
        (lambda d: first(d)["gate_up"].update(prefetch=2), "FastTile has unknown keys prefetch"),
        (lambda d: first(d)["gate_up"].pop("stages"), "FastTile has missing keys stages"),
        (lambda d: first(d)["gate_up"].update(block_n=96), "block_n=96: a power of two"),
        (lambda d: first(d)["gate_up"].update(stages=True), "stages=True: a whole number"),
        (lambda d: first(d)["gate_up"].update(swap=1), "swap=1: true or false"),
        (lambda d: first(d)["down"].update(small_k=128), "bulk needs small_k equal to block_k=64"),
        (lambda d: first(d, "1")["down"].update(step=500), "step=500: a power of two"),
        (lambda d: first(d, "1").update(down=7), "FewTile must be an object"),
    ],
)
def test_an_entry_that_cannot_be_is_one_line_that_names_file_and_remedy(edit, message, path):
    edited(path, edit)
    with pytest.raises(ValueError, match="make tune") as caught:
        tuned.load(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert message in said
    assert "\n" not in said


def test_a_torn_file_is_one_clear_error(path, gpu):
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ValueError, match=r"some-gpu\.json: .*delete the file and run `make tune`"):
        choose_tiles(gpu("Some GPU"), *SHAPE, 8)


def test_the_table_of_the_device_is_asked_before_the_heuristic(path, gpu):
    device = gpu("Some GPU")
    assert choose_tiles(device, *SHAPE, 8) == TILED
    assert choose_tiles(device, *SHAPE, 1) == FEW
    assert heuristic_tiles(target_of(device), *SHAPE, 8) != TILED


@pytest.mark.parametrize(
    ("name", "shape", "tokens"),
    [
        ("Another GPU", SHAPE, 8),
        ("Some GPU", (8, 2, 4096, 14337), 8),
        ("Some GPU", (8, 1, 4096, 14336), 8),
        ("Some GPU", SHAPE, 64),
        ("Some GPU", SHAPE, 16),
        ("Some GPU", SHAPE, 512),
    ],
    ids=["another device", "another size", "another top_k", "heuristic as good", "out of reach", "beyond the largest"],
)
def test_the_heuristic_serves_where_there_is_no_entry(name, shape, tokens, path, gpu):
    device = gpu(name)
    assert choose_tiles(device, *shape, tokens) == heuristic_tiles(target_of(device), *shape, tokens)


def test_packed_weights_take_the_table_of_their_format(path, gpu):
    device = gpu("Some GPU")
    assert choose_packed_tiles(device, Fp8Block, SHAPE, 8) == TABLE[("fp8_block", *SHAPE)][8]
    for kind, tokens, activations in ((Fp8Block, 32, None), (Fp8Block, 8, "a8"), (Mxfp4, 8, None)):
        expected = format_tiles(kind, target_of(device), SHAPE, tokens, activations)
        assert choose_packed_tiles(device, kind, SHAPE, tokens, activations) == expected
    cpu = torch.device("cpu")
    assert choose_packed_tiles(cpu, Fp8Block, SHAPE, 8) == format_tiles(Fp8Block, target_of(cpu), SHAPE, 8, None)


def test_the_cpu_never_takes_a_table(path, gpu):
    gpu("Some GPU")
    assert choose_tiles(torch.device("cpu"), *SHAPE, 8) is INTERPRETER


def test_an_installed_package_finds_the_tables(path, tmp_path):
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for part in ("kernels", "baselines", "experiments", "plots", "conf", ".src"):
        left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "figures")
        shutil.copytree(ROOT / part, checkout / part, symlinks=True, ignore=left_out)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, checkout)
    shutil.copy(path, checkout / "kernels" / "fast" / "tuned")

    def python(*arguments):
        settings = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=settings,
            cwd=tmp_path,
        )

    built = python("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
                   "--target", str(site), str(checkout))  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = python(
        "-c", "from tritonmoe_bench.kernels.fast.tuned import *; print(len(load(FOLDER / 'some-gpu.json')), FOLDER)"
    )
    assert done.stdout.split() == [str(len(TABLE)), str(site / "tritonmoe_bench" / "kernels" / "fast" / "tuned")], (
        done.stderr
    )


@pytest.mark.parametrize("file", sorted(tuned.FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_every_shipped_table_can_be_read(file):
    table = tuned.load(file)
    assert table
    assert tuned.slug(file.stem) == file.stem
    for (_, _, _, hidden, ffn), entries in table.items():
        for tiles in entries.values():
            if isinstance(tiles, FastTiles):
                assert hidden % 8 == 0 or not tiles.gate_up.bulk
                assert ffn % 8 == 0 or not tiles.down.bulk

"""The tool that makes .peers: imports that it leaves out, and the machine code that it drops from a library."""

import json
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from tiny_layer import load

FOLDER = Path(__file__).resolve().parents[2] / "baselines" / "builds" / "offline"
fatbin, left_out, assemble, wheels, prune = (
    load(FOLDER / f"{name}.py") for name in ("fatbin", "left_out", "assemble", "wheels", "prune_vllm")
)

SOURCE = '''"""Docstring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import vllm.kept as kept
import vllm.gone as gone
from vllm import kept as again
from vllm.gone import (
    One,
    Two as Second,
)
from .beside import Beside
from .far import Far

if TYPE_CHECKING:
    from vllm.gone import Never
else:
    from vllm.gone import Always

try:
    import vllm.gone.extension
except ImportError:
    pass


def later():
    from vllm.gone import Later

    return Later
'''


def test_imports_of_what_is_left_out_become_names():
    text = prune.leave_out(SOURCE, "vllm.part.module", False, {"vllm", "vllm.kept", "vllm.part.beside"})
    compile(text, "module", "exec")
    assert "import vllm.kept as kept" in text
    assert "from vllm import kept as again" in text
    assert "from .beside import Beside" in text
    for line in ("gone = _LeftOut('vllm.gone')", "One = _LeftOut('vllm.gone.One')",
                 "Second = _LeftOut('vllm.gone.Two')", "Far = _LeftOut('vllm.part.far.Far')",
                 "    Always = _LeftOut('vllm.gone.Always')", "    from vllm.gone import Never",
                 "    from vllm.gone import Later", "    pass"):  # fmt: skip
        assert line in text.splitlines()
    assert text.splitlines()[3] == "from vllm._left_out import LeftOut as _LeftOut"
    assert "import vllm.gone" not in text.replace("from vllm.gone import", "")


def test_a_name_left_out_fails_when_it_is_used_and_not_before():
    name = left_out.LeftOut("vllm.config.Thing")
    assert (name | None) is name
    assert name[int] is name

    class Child(name):
        field: name | None = name.DEFAULT

    for use in (lambda: Child.field(), lambda: bool(name), lambda: list(name.entries), lambda: name + 1):
        with pytest.raises(ImportError, match=r"vllm\.config\.Thing"):
            use()


def test_a_wheel_of_another_version_is_refused(tmp_path, capsys):
    wheel = tmp_path / "vllm-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm-0.1.0.dist-info/METADATA", "")
    for options, version in (([], "0.33.0"), (["--version", "0.22.1"], "0.22.1")):
        assert prune.main([*options, "--wheel", str(wheel), "--out", str(tmp_path / "out")]) == 1
        assert f"is not vLLM {version}" in capsys.readouterr().err


KERNELS = "vllm/third_party/triton_kernels/__init__.py"


@pytest.mark.parametrize("version", ["0.22.1", "0.33.0"])
def test_a_tree_has_the_modules_and_libraries_of_its_version(version, tmp_path, monkeypatch):
    monkeypatch.setattr(prune, "library", lambda data, arch, with_ptx: data)
    layout = prune.LAYOUTS[version]
    wheel = tmp_path / f"vllm-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"vllm-{version}.dist-info/METADATA", "")
        for name in ("vllm/__init__.py", *layout.modules, "vllm/other.py", layout.moe_library, prune.LIBRARY, KERNELS):
            archive.writestr(name, "")
    assert prune.main(["--version", version, "--wheel", str(wheel), "--out", str(tmp_path / "out")]) == 0
    made = {str(path.relative_to(tmp_path / "out" / "vllm")) for path in (tmp_path / "out" / "vllm").rglob("*.*")}
    assert made >= {"vllm/__init__.py", *layout.modules, layout.moe_library, prune.LIBRARY}
    assert "vllm/other.py" not in made
    assert json.loads((tmp_path / "out" / "vllm" / "BUILD.json").read_text(encoding="utf-8"))["vllm"] == version


# A made-up CUDA library: .nv_fatbin between two tables in one read-only segment, pointers to it in a writable one.

PAGE = 0x1000
BEFORE, AFTER = b"before" * 100, b"after!" * 100


def entry(arch: int, size: int, kind: int = 2) -> bytes:
    header = struct.pack("<HHIQ", kind, 1, 64, size) + struct.pack("<IIII", 0, 0, 0, arch) + bytes(32)
    return header + bytes([arch]) * size


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", fatbin.CONTAINER_MAGIC, 1, 16, len(body)) + body


CONTAINERS = [
    container(entry(75, 20000), entry(90, 504), entry(80, 16), entry(80, 8, kind=1)),
    container(entry(80, 30000, kind=1), entry(80, 30000)),
    container(entry(90, 104)),
]


def library() -> tuple[bytes, int]:
    """(the file, address of the first wrapper)."""
    code = b"".join(CONTAINERS)
    start = PAGE + len(BEFORE)
    read_only = BEFORE + code + AFTER
    writable = (PAGE + len(read_only)) // PAGE * PAGE + PAGE  # offset; its address is a page on
    wrappers, relocations, at = b"", b"", start
    for index, each in enumerate(CONTAINERS):
        wrappers += struct.pack("<IIQQ", fatbin.WRAPPER_MAGIC, 1, at, 0)
        relocations += struct.pack("<QQq", writable + PAGE + 24 * index + 8, 8, at)
        at += len(each)
    names = b"\0.nv_fatbin\0.nvFatBinSegment\0.rela.dyn\0.shstrtab\0"
    tail = wrappers + relocations + names
    section_table = writable + len(tail)

    def section(name: bytes, kind: int, address: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", names.index(name), kind, 0, address, offset, size, 0, 0, 8, 0)

    relocation_at = writable + len(wrappers)
    sections = (
        bytes(64)
        + section(b".nv_fatbin", 1, start, start, len(code))
        + section(b".nvFatBinSegment", 1, writable + PAGE, writable, len(wrappers))
        + section(b".rela.dyn", 4, relocation_at + PAGE, relocation_at, len(relocations))
        + section(b".shstrtab", 3, 0, relocation_at + len(relocations), len(names))
    )
    programs = b"".join(
        struct.pack("<IIQQQQQQ", *fields)
        for fields in (
            (1, 4, PAGE, PAGE, PAGE, len(read_only), len(read_only), PAGE),
            (1, 6, writable, writable + PAGE, writable + PAGE, len(tail), len(tail), PAGE),
            (4, 4, 0, 0, 0, 0, 0, 4),
        )
    )
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, section_table, 0, 64, 56, 3, 64, 5, 4
    )
    file = (header + programs).ljust(PAGE, b"\0") + read_only
    return file.ljust(writable, b"\0") + tail + sections, writable + PAGE


def memory(file: bytes) -> dict[int, int]:
    """Bytes by address, as the segments of `file` map them."""
    mapped = {}
    table, count = struct.unpack_from("<Q", file, 0x20)[0], struct.unpack_from("<H", file, 0x38)[0]
    last = -1
    for index in range(count):
        kind, _, offset, address, _, size, _, align = struct.unpack_from("<IIQQQQQQ", file, table + 56 * index)
        if kind == 1:
            assert offset % align == address % align
            assert address > last
            last = address
            mapped |= {address + at: file[offset + at] for at in range(size)}
    return mapped


def read(mapped: dict[int, int], address: int, size: int) -> bytes:
    return bytes(mapped[address + at] for at in range(size))


def test_only_the_code_of_one_architecture_is_left():
    before, wrappers = library()
    after = fatbin.keep_architecture(before, 90)
    assert len(after) < len(before) - 70000
    old, new = memory(before), memory(after)
    assert read(new, PAGE, len(BEFORE)) == BEFORE
    end = PAGE + len(BEFORE) + sum(map(len, CONTAINERS))
    assert read(new, end, len(AFTER)) == AFTER
    found = []
    for index in range(len(CONTAINERS)):
        relocation = wrappers + 24 * len(CONTAINERS) + 24 * index
        target, _, address = struct.unpack("<QQq", read(new, relocation, 24))
        assert target == wrappers + 24 * index + 8
        assert read(old, relocation, 16) == read(new, relocation, 16)
        magic, _, header, size = struct.unpack("<IHHQ", read(new, address, 16))
        assert (magic, header) == (fatbin.CONTAINER_MAGIC, 16)
        found.append(read(new, address + 16, size))
    assert found == [entry(90, 504), entry(80, 16), entry(90, 104)]
    sections = fatbin._sections(after)
    assert set(sections) == set(fatbin._sections(before))
    for name in (".nvFatBinSegment", ".shstrtab"):
        section, original = sections[name], fatbin._sections(before)[name]
        assert after[section.offset :][: section.size] == before[original.offset :][: original.size]


def test_a_gpu_of_a_later_minor_version_keeps_the_code_of_an_earlier_one():
    before, wrappers = library()
    new = memory(fatbin.keep_architecture(before, 86))
    addresses = [struct.unpack("<q", read(new, wrappers + 24 * (3 + index) + 16, 8))[0] for index in range(3)]
    kept = [struct.unpack("<I", read(new, address + 16 + fatbin.ENTRY_ARCH, 4))[0] for address in addresses]
    assert kept == [80, 80, 90]


def test_ptx_takes_the_place_of_machine_code_where_it_is_asked_for():
    before, wrappers = library()
    given = []

    def made(ptx: bytes) -> bytes:
        given.append(ptx)
        return container(entry(90, 48))

    new = memory(fatbin.keep_architecture(before, 90, made))
    addresses = [struct.unpack("<q", read(new, wrappers + 24 * (3 + index) + 16, 8))[0] for index in range(3)]
    kept = [struct.unpack("<HHIQ", read(new, address + 16, 16))[0::3] for address in addresses]
    assert kept == [(2, 504), (2, 48), (2, 104)]
    assert given == [container(entry(80, 30000, kind=1))]


TINY_PTX = """.version 7.0
.target sm_80
.address_size 64
.visible .entry kernel() { ret; }
"""


@pytest.mark.skipif(assemble.tools() is None, reason="needs ptxas and fatbinary of CUDA")
def test_ptx_becomes_machine_code(tmp_path):
    (tmp_path / "kernel.ptx").write_text(TINY_PTX, encoding="utf-8")
    image = f"--image3=kind=ptx,sm=80,file={tmp_path}/kernel.ptx"
    subprocess.run([assemble.tools()["fatbinary"], f"--create={tmp_path}/ptx.fatbin", "-64", image], check=True)
    out = bytearray(assemble.assembled((tmp_path / "ptx.fatbin").read_bytes(), 90, assemble.tools()))
    assert [kind_arch[:2] for kind_arch in fatbin._entries(out, 0)] == [(fatbin.CUBIN, 90)]


def test_what_is_not_understood_is_refused():
    before, _ = library()
    with pytest.raises(fatbin.FatbinError, match="ELF"):
        fatbin.keep_architecture(b"text", 90)
    broken = before.replace(struct.pack("<I", fatbin.CONTAINER_MAGIC), b"oops")
    with pytest.raises(fatbin.FatbinError, match="no container"):
        fatbin.keep_architecture(broken, 90)

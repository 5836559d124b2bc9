"""Drops the machine code of other GPUs from a CUDA shared library, and the room that it took.

A CUDA library holds, in its section .nv_fatbin, one container per source file, each with the same code for several
architectures; .nvFatBinSegment points at the containers. Kept containers are moved together, the pointers follow, and
the pages that fall empty are cut out of the file by splitting the read-only segment in two. The layout of a container
is not documented by NVIDIA; it was read off files (`cuobjdump -lelf` of the result lists what was kept).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

CONTAINER_MAGIC, WRAPPER_MAGIC = 0xBA55ED50, 0x466243B1
CONTAINER_HEADER = struct.Struct("<IHHQ")  # magic, version, size of this header, size of the entries
ENTRY_HEADER = struct.Struct("<HHIQ")  # kind, version, size of this header, size of the code
ENTRY_ARCH = 28  # offset of the architecture, 10 x major + minor, in an entry
PTX, CUBIN = 1, 2
PAGE = 0x1000
PT_LOAD, PT_NOTE = 1, 4
SHT_RELA = 4
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, addr, offset, size, link, info, addralign, entsize
RELOCATION = struct.Struct("<QQq")  # offset, info, addend
R_X86_64_RELATIVE = 8


class FatbinError(ValueError):
    """The library is not laid out as this tool knows it."""


@dataclass(frozen=True)
class Section:
    """A section of an ELF file; `header` is the offset of its header."""

    header: int
    kind: int
    address: int
    offset: int
    size: int


def keep_architecture(library: bytes, arch: int, of_ptx: Callable[[bytes], bytes] | None = None) -> bytes:
    """The x86-64 shared library `library` with the machine code that a GPU of `arch` (90 for 9.0) would choose, alone.

    of_ptx: what to put in the place of a container without such code but with PTX, given one with that PTX alone. Any
    other container is left with a code that the GPU cannot load, the smallest of the file, since the runtime wants one.
    Raises FatbinError for a file that is not understood.
    """
    data = bytearray(library)
    sections = _sections(data)
    try:
        code, wrappers = sections[".nv_fatbin"], sections[".nvFatBinSegment"]
    except KeyError as error:
        raise FatbinError(f"no section {error}: not a CUDA library") from None
    shift = code.address - code.offset
    containers = dict(_containers(data, code))
    entries = {offset: list(_entries(data, offset)) for offset in containers}
    cubins = [entry for found in entries.values() for entry in found if entry[0] == CUBIN]
    foreign = [data[start:end] for _, at, start, end in cubins if at // 10 != arch // 10]
    if not foreign:
        return library
    filler = bytes(min(foreign, key=len))

    def kept(offset: int) -> bytes:
        header, version = containers[offset]
        chosen = _chosen(entries[offset], CUBIN, arch)
        ptx = [] if chosen or of_ptx is None else _chosen(entries[offset], PTX, arch)
        body = b"".join(data[start:end] for start, end in chosen or ptx) or filler
        made = CONTAINER_HEADER.pack(CONTAINER_MAGIC, version, header, len(body)) + body
        made = of_ptx(made) if of_ptx and ptx else made
        return made + bytes(-len(made) % 8)

    moved, packed = {}, bytearray()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for offset, container in zip(containers, pool.map(kept, containers)):
            moved[offset + shift] = code.address + len(packed)
            packed += container
    _repoint(data, sections, wrappers, moved)
    data[code.offset : code.offset + len(packed)] = packed

    first = -(-(code.offset + len(packed)) // PAGE) * PAGE
    last = (code.offset + code.size) // PAGE * PAGE
    if last <= first:
        return bytes(data)
    struct.pack_into("<Q", data, code.header + 32, len(packed))  # the size of the section
    _cut(data, first, last)
    return bytes(data[:first] + data[last:])


def _chosen(entries: list[tuple[int, int, int, int]], kind: int, arch: int) -> list[tuple[int, int]]:
    """Where the code of a kind lies that a GPU of `arch` loads: the newest that is not newer, machine code of its own
    generation only."""
    fitting = [entry for entry in entries if entry[0] == kind and entry[1] <= arch]
    if kind == CUBIN:
        fitting = [entry for entry in fitting if entry[1] // 10 == arch // 10]
    best = max((at for _, at, _, _ in fitting), default=0)
    return [(start, end) for _, at, start, end in fitting if at == best]


def _sections(data: bytes | bytearray) -> dict[str, Section]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise FatbinError("not a 64-bit little-endian ELF file")
    table, count, names = *struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<2H", data, 0x3C)
    headers = [(at, SECTION_HEADER.unpack_from(data, at)) for at in range(table, table + 64 * count, 64)]
    strings = headers[names][1][4]
    return {
        bytes(data[strings + h[0] : data.index(b"\0", strings + h[0])]).decode(): Section(at, h[1], h[3], h[4], h[5])
        for at, h in headers
    }


def _containers(data: bytearray, code: Section):
    """(offset, (size of its header, version)) of each container, in order."""
    at, end = code.offset, code.offset + code.size
    while at < end:
        magic, version, header, size = CONTAINER_HEADER.unpack_from(data, at)
        if magic != CONTAINER_MAGIC:
            raise FatbinError(f"no container at {at:#x}")
        yield at, (header, version)
        at += -(-(header + size) // 8) * 8


def _entries(data: bytearray, container: int):
    """(kind, architecture, start, end) of each code in a container."""
    _, _, header, size = CONTAINER_HEADER.unpack_from(data, container)
    at, end = container + header, container + header + size
    while at < end:
        kind, _, entry_header, code_size = ENTRY_HEADER.unpack_from(data, at)
        (arch,) = struct.unpack_from("<I", data, at + ENTRY_ARCH)
        yield kind, arch, at, at + entry_header + code_size
        at += entry_header + code_size


def _repoint(data: bytearray, sections: dict[str, Section], wrappers: Section, moved: dict[int, int]) -> None:
    """Each wrapper (magic, version, pointer, 8 bytes) finds its container by a relative relocation of the pointer."""
    left = {wrappers.address + at + 8 for at in range(0, wrappers.size, 24)}
    for section in sections.values():
        if section.kind != SHT_RELA:
            continue
        for at in range(section.offset, section.offset + section.size, RELOCATION.size):
            target, info, addend = RELOCATION.unpack_from(data, at)
            if target in left:
                if info != R_X86_64_RELATIVE or addend not in moved:
                    raise FatbinError(f"a wrapper points outside of .nv_fatbin: {addend:#x}")
                RELOCATION.pack_into(data, at, target, info, moved[addend])
                left.remove(target)
    if left:
        raise FatbinError("a wrapper has no relocation")


def _cut(data: bytearray, first: int, last: int) -> None:
    """Prepares headers for the removal of the file's bytes [first, last), whole pages inside one read-only segment.

    Addresses stay; the second part of the segment takes the program header of a note, which nothing needs at run time.
    """
    table, count = struct.unpack_from("<Q", data, 0x20)[0], struct.unpack_from("<H", data, 0x38)[0]
    headers = [PROGRAM_HEADER.unpack_from(data, table + 56 * index) for index in range(count)]
    rewritten, spare = [], 0
    for kind, flags, offset, vaddr, paddr, filesz, memsz, align in headers:
        if kind == PT_NOTE and not spare:
            spare += 1
        elif kind == PT_LOAD and offset <= first and last <= offset + filesz:
            if align > PAGE:
                raise FatbinError(f"segments are aligned to {align:#x}")
            head, tail = first - offset, last - offset
            rewritten += [
                (kind, flags, offset, vaddr, paddr, head, head, align),
                (kind, flags, first, vaddr + tail, paddr + tail, filesz - tail, memsz - tail, align),
            ]
        else:
            moved = offset - (last - first) if offset >= last else offset
            rewritten.append((kind, flags, moved, vaddr, paddr, filesz, memsz, align))
    if len(rewritten) != count:
        raise FatbinError("no program header to spare, or .nv_fatbin is not inside of one segment")
    for index, header in enumerate(rewritten):
        PROGRAM_HEADER.pack_into(data, table + 56 * index, *header)
    for section in _sections(data).values():
        if section.offset >= last:
            struct.pack_into("<Q", data, section.header + 24, section.offset - (last - first))
    table = struct.unpack_from("<Q", data, 0x28)[0]
    if table >= last:
        struct.pack_into("<Q", data, 0x28, table - (last - first))

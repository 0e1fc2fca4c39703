# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of an ELF core file that a memory dump consists of: segments and notes (ELF gABI)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from gdb_sme.errors import TargetError

ET_CORE = 4
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
#: In e_phnum: the number of program headers is in sh_info of section header 0.
PN_XNUM = 0xFFFF

NOT_LONG_MODE = (
    "the dump is of a 32-bit machine, or of one that was not in long mode yet; "
    "only x86-64 page tables can be shown"
)
_COMPRESSED, _FLATTENED = (b"KDUMP   ", b"DISKDUMP"), b"makedumpfile"
#: How files begin that can be converted into ELF dumps.
CONVERTIBLE = (*_COMPRESSED, _FLATTENED)

_MAGIC = b"\x7fELF"
_CLASS32, _CLASS64, _LITTLE_ENDIAN = 1, 2, 1
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SH_INFO_OFFSET = 44
_NHDR = struct.Struct("<III")

#: ``read(offset, length)`` of a file: as many bytes as there are.
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD: ``size`` bytes of the file from ``offset``, guest ``pa`` and ``va``."""

    offset: int
    va: int
    pa: int
    size: int


@dataclass(frozen=True, slots=True)
class Note:
    """A note: owner ``name``, ``kind`` (n_type) and contents."""

    name: str
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CoreFile:
    """An ELF core file's table of contents."""

    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]

    def named(self, name: str, kind: int | None = None) -> tuple[bytes, ...]:
        """Contents of the notes of an owner, of one type or all, in their order."""
        return tuple(
            note.data
            for note in self.notes
            if note.name == name and (kind is None or note.kind == kind)
        )


def parse_core(read: Read, size: int | None) -> CoreFile:
    """Parse an x86-64 memory dump.

    Args:
        read: the file.
        size: its length in bytes; None where it has none (/proc/kcore).

    Raises:
        TargetError: it is not an ELF core file of an x86-64 machine, or is cut short.
    """
    head = read(0, _EHDR.size)
    if head[:4] != _MAGIC:
        raise TargetError(not_elf(head))
    if len(head) < _EHDR.size:
        raise TargetError("the dump is truncated: it ends within its ELF header")
    machine = int.from_bytes(head[18:20], "little")
    if head[4] == _CLASS32 or machine == EM_386:
        raise TargetError(NOT_LONG_MODE)
    if head[4] != _CLASS64 or head[5] != _LITTLE_ENDIAN or machine != EM_X86_64:
        raise TargetError(f"the dump is of another architecture (ELF machine {machine}, not 62)")
    fields = _EHDR.unpack(head)
    kind, phoff, shoff, phnum = fields[1], fields[5], fields[6], fields[10]
    if kind != ET_CORE:
        raise TargetError(f"the file is no core dump (ELF type {kind}, not {ET_CORE})")
    if phnum == PN_XNUM:
        section = _exactly(read, shoff, 64, "the section header that counts its segments")
        phnum = int.from_bytes(section[_SH_INFO_OFFSET : _SH_INFO_OFFSET + 4], "little")
    table = _exactly(read, phoff, phnum * _PHDR.size, "its program headers")
    segments: list[Segment] = []
    notes: list[Note] = []
    for p_type, _flags, offset, va, pa, length, _memsz, _align in _PHDR.iter_unpack(table):
        if p_type == PT_NOTE:
            notes += parse_notes(_exactly(read, offset, length, "its notes"))
        elif p_type == PT_LOAD and length:
            segments.append(Segment(offset, va, pa, length))
    end = max((segment.offset + segment.size for segment in segments), default=0)
    if size is not None and end > size:
        raise TargetError(
            f"the dump is truncated: its segments end at byte {end:#x}, the file at {size:#x}; "
            "copy or dump it again"
        )
    return CoreFile(tuple(segments), tuple(notes))


def parse_notes(data: bytes) -> list[Note]:
    """The notes of a PT_NOTE segment: names and contents padded to 4 bytes."""
    notes: list[Note] = []
    position = 0
    while position + _NHDR.size <= len(data):
        name_size, size, kind = _NHDR.unpack_from(data, position)
        name_at = position + _NHDR.size
        at = name_at + (name_size + 3 & ~3)
        if at + size > len(data):
            break
        if name_size or size:
            name = data[name_at : name_at + name_size].rstrip(b"\0").decode("ascii", "replace")
            notes.append(Note(name, kind, data[at : at + size]))
        position = at + (size + 3 & ~3)
    return notes


def _exactly(read: Read, offset: int, length: int, what: str) -> bytes:
    data = read(offset, length)
    if len(data) < length:
        raise TargetError(f"the dump is truncated: it ends within {what} at {offset:#x}")
    return data


def not_elf(head: bytes) -> str:
    """Why a file that begins with ``head`` is no dump to read, and what converts it."""
    if head.startswith(_COMPRESSED):
        return (
            "the dump is kdump-compressed, not ELF; make an ELF file of the crashed machine's "
            "/proc/vmcore with: makedumpfile -E -d 0 /proc/vmcore DUMP; in QEMU dump without -z, "
            "-l, -s; open this file with crash or drgn, which can read it"
        )
    if head.startswith(_FLATTENED):
        return (
            "the dump is in makedumpfile's flattened format; put it in order with: "
            "makedumpfile -R DUMP < FLATTENED"
        )
    if not head:
        return "the dump is empty"
    return "the dump is no ELF file"

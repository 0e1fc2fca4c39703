# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory and CPUs out of a memory dump's segments and notes."""

from __future__ import annotations

import struct
from bisect import bisect_right
from contextlib import AbstractContextManager, nullcontext

from gdb_sme.core.address import PHYSICAL_BITS
from gdb_sme.core.cbit import LOWEST_C_BIT
from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.elf import CoreFile, Read, Segment
from gdb_sme.core.ports import Range
from gdb_sme.errors import ReadError

#: Types of the notes of owner CORE (include/uapi/linux/elf.h): no machine has an auxiliary vector.
NT_PRSTATUS, NT_AUXV = 1, 6

# struct QEMUCPUState of QEMU's target/i386/arch_dump.c, 7.2: version, size, 18 registers, 10
# segment registers of 24 bytes each, cr[5].
_QEMU_VERSION = 1
_QEMU_RIP, _QEMU_RFLAGS, _QEMU_CS, _QEMU_GS_BASE, _QEMU_CR = 136, 144, 152, 264, 392
_QEMU_LEAST = 432

# struct elf_prstatus, x86-64: pr_reg begins at byte 112 and is laid out as user_regs_struct.
_PRSTATUS_RIP, _PRSTATUS_CS, _PRSTATUS_EFLAGS, _PRSTATUS_GS_BASE = 240, 248, 256, 288
_PRSTATUS_LEAST = 336


def dump_c_bit(segments: tuple[Segment, ...]) -> int | None:
    """The bit that sets physical addresses of a dump apart from RAM; None without one.

    Two dumps have it: that of a machine with a second view of its RAM at the C-bit, and that of
    QEMU's ``dump-guest-memory -p``, which takes physical addresses from page tables as they stand.
    """
    highest = max((s.pa for s in segments if not s.pa >> PHYSICAL_BITS), default=0)
    return highest.bit_length() - 1 if highest >> LOWEST_C_BIT else None


class DumpMemory:
    """`gdb_sme.core.ports.PhysMemory` over the segments of a dump.

    Args:
        name: of the file, for `sme status`.
        read: the file, as `elf.parse_core` takes it.
        segments: the dump's, which may overlap.
    """

    def __init__(self, name: str, read: Read, segments: tuple[Segment, ...]) -> None:
        c_bit = dump_c_bit(segments)
        self.name = f"segments of {name}"
        if c_bit is not None:
            self.name += f", bit {c_bit} taken out of their physical addresses"
        self._read = read
        self._pieces = _without_overlaps(segments, 0 if c_bit is None else 1 << c_bit)
        self._starts = [piece.pa for piece in self._pieces]
        self._ram = _ranges(self._pieces)

    @property
    def ram(self) -> tuple[Range, ...]:
        """What the dump holds, lowest first, without second views."""
        return self._ram

    def read(self, pa: int, length: int) -> bytes:
        """See `gdb_sme.core.ports.PhysMemory.read`."""
        out = b""
        while len(out) < length:
            at = pa + len(out)
            number = bisect_right(self._starts, at) - 1
            piece = self._pieces[number] if number >= 0 else None
            if piece is None or at >= piece.pa + piece.size:
                raise ReadError(pa, length, "not in the dump")
            part = min(length - len(out), piece.pa + piece.size - at)
            data = self._read(piece.offset + at - piece.pa, part)
            if len(data) < part:
                raise ReadError(pa, length, "the dump file ends before it")
            out += data
        return out

    def batch(self) -> AbstractContextManager[None]:
        """Nothing to set up."""
        return nullcontext()


def _without_overlaps(segments: tuple[Segment, ...], mask: int) -> list[Segment]:
    """Segments by physical address without ``mask``, each byte once."""
    pieces: list[Segment] = []
    end = 0
    # /proc/kcore gives -1 to what has no one physical address, as vmalloc.
    real = [segment for segment in segments if not segment.pa >> PHYSICAL_BITS]
    for segment in sorted(real, key=lambda each: (each.pa & ~mask, -each.size)):
        pa = segment.pa & ~mask
        skip = max(0, end - pa)
        if skip >= segment.size:
            continue
        end = pa + segment.size
        pieces.append(
            Segment(segment.offset + skip, segment.va + skip, pa + skip, segment.size - skip)
        )
    return pieces


def _ranges(pieces: list[Segment]) -> tuple[Range, ...]:
    ranges: list[Range] = []
    for piece in pieces:
        end = piece.pa + piece.size
        if ranges and ranges[-1].end == piece.pa:
            ranges[-1] = Range(ranges[-1].start, end)
        else:
            ranges.append(Range(piece.pa, end))
    return tuple(ranges)


def dump_cpus(core: CoreFile, la57: bool | None) -> tuple[CpuState, ...]:
    """The CPUs as the notes have them: QEMU's with control registers, others without.

    Args:
        core: the dump.
        la57: whether the kernel uses 5-level paging, None when that is not known.
    """
    qemu = [data for data in core.named("QEMU") if _is_qemu_state(data)]
    if qemu:
        return tuple(_qemu_cpu(index, data) for index, data in enumerate(qemu))
    status = [data for data in core.named("CORE", NT_PRSTATUS) if len(data) >= _PRSTATUS_LEAST]
    if not status:
        return (CpuState(0, 0, la57=la57),)
    return tuple(_prstatus_cpu(index, data, la57) for index, data in enumerate(status))


def _is_qemu_state(data: bytes) -> bool:
    if len(data) < _QEMU_LEAST:
        return False
    version, size = struct.unpack_from("<II", data)
    return bool(version == _QEMU_VERSION and size <= len(data))


def _word(data: bytes, offset: int, size: int = 8) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _qemu_cpu(index: int, data: bytes) -> CpuState:
    cr0, _, cr2, cr3, cr4 = struct.unpack_from("<5Q", data, _QEMU_CR)
    return CpuState(
        index,
        _word(data, _QEMU_RIP),
        cs=_word(data, _QEMU_CS, 4),
        rflags=_word(data, _QEMU_RFLAGS),
        cr0=cr0,
        cr2=cr2,
        cr3=cr3,
        cr4=cr4,
        gs_base=_word(data, _QEMU_GS_BASE),
    )


def _prstatus_cpu(index: int, data: bytes, la57: bool | None) -> CpuState:
    return CpuState(
        index,
        _word(data, _PRSTATUS_RIP),
        cs=_word(data, _PRSTATUS_CS),
        rflags=_word(data, _PRSTATUS_EFLAGS),
        gs_base=_word(data, _PRSTATUS_GS_BASE),
        la57=la57,
    )

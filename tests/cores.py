# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF core files written from parts: what QEMU, kexec-tools and /proc/kcore make, in small."""

from __future__ import annotations

import struct
from collections.abc import Sequence

EM_X86_64 = 62


def note(name: str, kind: int, data: bytes) -> bytes:
    """One note, padded as the ELF gABI wants it."""
    owner = name.encode() + b"\0"
    return b"".join(
        (
            struct.pack("<III", len(owner), len(data), kind),
            owner.ljust(len(owner) + 3 & ~3, b"\0"),
            data.ljust(len(data) + 3 & ~3, b"\0"),
        )
    )


def core(
    notes: bytes,
    segments: Sequence[tuple[int, int, bytes]],
    *,
    machine: int = EM_X86_64,
    elf_class: int = 2,
    elf_type: int = 4,
    xnum: bool = False,
) -> bytes:
    """An ELF core file; a segment is (va, pa, contents).

    ``xnum`` counts the program headers in section header 0, as files with many segments do.
    """
    count = len(segments) + 1
    phoff = 128
    data_at = phoff + 56 * count
    ident = b"\x7fELF" + bytes((elf_class, 1, 1)) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(ident, elf_type, machine, 1, 0, phoff, 64, 0),
        *(64, 56, 0xFFFF if xnum else count, 64, 1, 0),
    )
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count if xnum else 0, 0, 0)
    table = struct.pack("<IIQQQQQQ", 4, 0, data_at, 0, 0, len(notes), len(notes), 0)
    at = data_at + len(notes)
    for va, pa, data in segments:
        table += struct.pack("<IIQQQQQQ", 1, 7, at, va, pa, len(data), len(data), 0)
        at += len(data)
    return b"".join((header, section, table, notes, *(data for _, _, data in segments)))


def qemu_state(
    *, rip: int, cs: int, rflags: int, gs_base: int, cr: tuple[int, int, int, int, int]
) -> bytes:
    """QEMUCPUState (QEMU 7.2, target/i386/arch_dump.c), each register that is not named a token."""
    general = [0xBAD0 + number for number in range(16)]
    segments = b"".join(
        struct.pack("<IIIIQ", selector, 0xFFFFF, 0, 0, base)
        for selector, base in ((cs, 1), (2, 2), (3, 3), (4, 4), (5, gs_base), *[(6, 6)] * 5)
    )
    return (
        struct.pack("<II18Q", 1, 440, *general, rip, rflags)
        + segments
        + struct.pack("<6Q", *cr, 0xBAD)
    )


def prstatus(*, rip: int, cs: int, eflags: int, gs_base: int) -> bytes:
    """struct elf_prstatus, x86-64."""
    registers = [0xBAD0 + number for number in range(27)]
    registers[16:19] = rip, cs, eflags
    registers[22] = gs_base
    return bytes(112) + struct.pack("<27Q", *registers) + bytes(8)

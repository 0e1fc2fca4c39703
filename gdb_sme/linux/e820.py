# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's e820 table: what of physical memory is RAM, and what the firmware kept."""

from __future__ import annotations

import struct
from enum import IntEnum

from gdb_sme.core.ports import Range
from gdb_sme.errors import ReadError
from gdb_sme.linux.kernel import Kernel

#: struct e820_entry: u64 addr, u64 size, enum e820_type, packed
#: (arch/x86/include/asm/e820/types.h, 6.1 and 6.12).
_ENTRY = struct.Struct("<QQI")

#: More than E820_MAX_ENTRIES of any configuration: what says more is no table.
_MOST = 4096


class Type(IntEnum):
    """enum e820_type, as far as it matters here."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    RESERVED_KERN = 128


def entries(kernel: Kernel) -> tuple[tuple[Range, int], ...]:
    """The entries of ``e820_table`` with their type, in its order; empty before it is filled."""
    table = kernel.read_symbol("e820_table")
    if not table:
        return ()
    try:
        count = int.from_bytes(kernel.read_virtual(table, 4), "little")
        data = kernel.read_virtual(table + 4, count * _ENTRY.size) if count <= _MOST else b""
    except ReadError:
        return ()
    return tuple(
        (Range(start, start + size), kind) for start, size, kind in _ENTRY.iter_unpack(data)
    )


def ram(kernel: Kernel) -> tuple[Range, ...]:
    """What the kernel uses as RAM, lowest first; the machine's own RAM before it knows."""
    known = [span for span, kind in entries(kernel) if kind in (Type.RAM, Type.RESERVED_KERN)]
    return tuple(sorted(known, key=lambda span: span.start)) or kernel.memory.ram


def firmware(kernel: Kernel) -> tuple[Range, ...]:
    """What the firmware kept: reserved memory, ACPI tables, NVS; lowest first."""
    kept = (Type.RESERVED, Type.ACPI, Type.NVS)
    known = [span for span, kind in entries(kernel) if kind in kept]
    return tuple(sorted(known, key=lambda span: span.start))

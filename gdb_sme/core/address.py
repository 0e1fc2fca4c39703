# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers that are addresses: sizes, alignment, canonical form, and how they are written."""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
U64 = (1 << 64) - 1

#: Highest physical address bit that a page-table entry can hold, plus one
#: (AMD APM volume 2, section 5.3, "Long-Mode Page Translation").
PHYSICAL_BITS = 52
PHYSICAL_MASK = (1 << PHYSICAL_BITS) - 1
PAGE_FRAME_MASK = PHYSICAL_MASK & ~(PAGE_SIZE - 1)

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def is_canonical(va: int, va_bits: int) -> bool:
    """Whether ``va`` (0 to 2**64-1) is canonical with ``va_bits`` (48 or 57) translated bits.

    AMD APM volume 2, section 1.1.3: bits 63 down to ``va_bits - 1`` are all equal.
    """
    return (va >> (va_bits - 1)) in (0, (1 << (65 - va_bits)) - 1)


def sign_extend(va: int, va_bits: int) -> int:
    """The canonical form of the low ``va_bits`` (48 or 57) bits of ``va``."""
    va &= (1 << va_bits) - 1
    return va | (U64 & ~((1 << va_bits) - 1)) if va >> (va_bits - 1) else va


def align_down(address: int, size: int) -> int:
    """``address`` rounded down to a multiple of ``size``, a power of two in bytes."""
    return address & ~(size - 1)


def align_up(address: int, size: int) -> int:
    """``address`` rounded up to a multiple of ``size``, a power of two in bytes."""
    return (address + size - 1) & ~(size - 1)


def hex_va(va: int) -> str:
    """A virtual address as 0x and 16 digits, so that columns align."""
    return f"{va:#018x}"


def hex_pa(pa: int) -> str:
    """A physical address as 0x and at least 8 digits."""
    return f"{pa:#010x}"


def size_text(size: int) -> str:
    """A size in bytes with the largest binary unit that divides it: ``2 MiB``, ``4 KiB``."""
    for unit, name in _UNITS:
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"

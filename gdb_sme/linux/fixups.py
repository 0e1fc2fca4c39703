# SPDX-License-Identifier: GPL-2.0-or-later
"""The fix-ups of the early tables: what the kernel made of them before it loaded them."""

from __future__ import annotations

import struct

from gdb_sme.core.paging import ENTRIES, LEVEL5, TABLE_SIZE
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.trace import FixUp, Place

#: Early tables whose entries the kernel fixes up before it loads them, and how many pages of each.
_FIXED_UP = {
    "early_top_pgt": 1,
    "level4_kernel_pgt": 1,
    "level3_kernel_pgt": 1,
    "level2_kernel_pgt": 1,
    "level2_fixmap_pgt": 1,
    "early_dynamic_pgts": 3,
}
FIXED_UP = tuple(_FIXED_UP)

_Entries = tuple[tuple[int, int, int], ...]


def early_tables(kernel: Kernel) -> dict[str, bytes]:
    """The pages of the early tables that this kernel has, by their names."""
    five_level = kernel.cpus[0].mode is LEVEL5
    return {
        name: kernel.memory.read(pa, pages * TABLE_SIZE)
        for name, pages in _FIXED_UP.items()
        if (five_level or name != "level4_kernel_pgt") and (pa := kernel.pa_of(name)) is not None
    }


def fix_ups(kernel: Kernel, before: dict[str, bytes], place: Place) -> list[FixUp]:
    """What was done to the early tables, one a page, since they were as in ``before``."""
    found = []
    for name, old in before.items():
        symbol, pa = kernel.symbol(name), kernel.pa_of(name)
        if pa is None or symbol is None:
            continue
        new = kernel.memory.read(pa, len(old))
        exempt = decrypted_entries(kernel) if name == "level2_kernel_pgt" else ()
        for page, entries in enumerate(_changes(old, new)):
            title = f"{symbol[0]}[{page}]" if len(old) > TABLE_SIZE else symbol[0]
            if entries:
                found.append(FixUp(0, place, title, entries, exempt))
    return found


def _changes(old: bytes, new: bytes) -> list[_Entries]:
    """For each page: index, old and new value of each entry that is present or changed."""
    was, now = (struct.unpack(f"<{len(raw) // 8}Q", raw) for raw in (old, new))
    return [
        tuple(
            (index, was[page + index], now[page + index])
            for index in range(ENTRIES)
            if was[page + index] != now[page + index] or now[page + index] & 1
        )
        for page in range(0, len(was), ENTRIES)
    ]


def decrypted_entries(kernel: Kernel) -> tuple[int, ...]:
    """Indexes of .bss..decrypted's entries in level2_kernel_pgt: without the mask by design."""
    start, end = kernel.symbol("__start_bss_decrypted"), kernel.symbol("__end_bss_decrypted")
    if start is None or end is None or kernel.image is None:
        return ()
    first, last = kernel.image.va_of(start[1]), kernel.image.va_of(end[1])
    return tuple(range(first >> 21 & 511, (last - 1 >> 21 & 511) + 1)) if last > first else ()

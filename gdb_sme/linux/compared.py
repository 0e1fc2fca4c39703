# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read at every stop of a trace that has no watchpoints, and compared with the stop before.

Tables in the kernel image alone: to read another one before init_mem_mapping() has returned would
be an early page fault, and would change what is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gdb_sme.core.entry import PRESENT
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, LEVEL5, TABLE_SIZE
from gdb_sme.linux.fixups import decrypted_entries
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import initmem_freed, on_early_tables
from gdb_sme.linux.trace import Event, Place, TableChange, Write

#: Tables that stay in use, ...
_LASTING = (
    "init_top_pgt",
    "level4_kernel_pgt",
    "level3_kernel_pgt",
    "level2_kernel_pgt",
    "level2_fixmap_pgt",
)
#: ... and those that are in use until init_mem_mapping() loads init_top_pgt. Of the second as many
#: pages as the early page faults have taken: next_early_pgt (arch/x86/kernel/head64.c).
_EARLY, _DYNAMIC, _TAKEN = "early_top_pgt", "early_dynamic_pgts", "next_early_pgt"
_DYNAMIC_MAX = 64


class Compared:
    """The tables and protection_map, as they were at the stop before."""

    def __init__(self) -> None:
        self._tables: dict[str, tuple[int, ...]] = {}
        self._protection: tuple[int, ...] = ()
        self._looked = False

    def look(self, kernel: Kernel, place: Place, since: int) -> Iterator[Event]:
        """What changed since the look before; the first time, what is there.

        Args:
            kernel: the kernel at this stop.
            place: where it stands.
            since: number of the last event of the stop before.
        """
        first, self._looked = not self._looked, True
        for name, entries in _tables(kernel):
            before = self._tables.get(name)
            self._tables[name] = entries
            if before is None:
                # A page that is taken later is cleared first.
                before = entries if first else (0,) * len(entries)
            changed = tuple(
                (index, old, new)
                for index, (old, new) in enumerate(zip(before, entries, strict=True))
                if old != new or (first and new & PRESENT)
            )
            if changed:
                exempt = decrypted_entries(kernel) if name == "level2_kernel_pgt" else ()
                yield TableChange(0, place, name, changed, exempt, 0 if first else since)
        protection, held = protection_map(kernel), self._protection
        self._protection = protection
        for index, (old, new) in enumerate(zip(held, protection, strict=False)):
            if old != new:
                name = f"protection_map[{index}]"
                yield Write(0, place, name, old, new, noticed=True, since=since)


def protection_map(kernel: Kernel) -> tuple[int, ...]:
    """The entries of protection_map, none where the kernel has it elsewhere or not at all."""
    pa = kernel.pa_of("protection_map")
    if pa is None:
        return ()
    return _entries(kernel, pa, (kernel.symbols.size("protection_map") or 128) // ENTRY_SIZE)


def _tables(kernel: Kernel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and entries of every table to look at, a page each."""
    names = [_EARLY, *_LASTING] if on_early_tables(kernel) else list(_LASTING)
    if kernel.cpus[0].mode is not LEVEL5:
        names.remove("level4_kernel_pgt")
    for name in names:
        found, pa = kernel.symbol(name), kernel.pa_of(name)
        if found is not None and pa is not None:
            yield found[0], _entries(kernel, pa, ENTRIES)
    pa, taken = kernel.pa_of(_DYNAMIC), kernel.read_symbol(_TAKEN, 4)
    if _EARLY in names and not initmem_freed(kernel) and pa is not None:
        for page in range(min(taken or 0, _DYNAMIC_MAX)):
            yield f"{_DYNAMIC}[{page}]", _entries(kernel, pa + page * TABLE_SIZE, ENTRIES)


def _entries(kernel: Kernel, pa: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", kernel.memory.read(pa, count * ENTRY_SIZE))

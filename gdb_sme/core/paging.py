# SPDX-License-Identifier: GPL-2.0-or-later
"""The paging modes of x86-64 as data: one table a mode, one walker for all of them.

AMD APM volume 2, sections 5.3 (4-level) and 5.3.6 (5-level); Linux names the levels pgd, p4d, pud,
pmd, pte. With 4 levels Linux folds the p4d into the pgd.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.address import PAGE_SHIFT

ENTRY_SIZE = 8
ENTRIES = 512
TABLE_SIZE = ENTRY_SIZE * ENTRIES


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the page tables.

    Attributes:
        name: the kernel's name of an entry at this level.
        apm: AMD's name of the same entry.
        shift: lowest virtual address bit of the index; ``1 << shift`` bytes an entry.
        leaf: whether an entry maps memory: ``"always"``, ``"pse"`` (if bit 7 is set), ``"never"``.
    """

    name: str
    apm: str
    shift: int
    leaf: str

    @property
    def span(self) -> int:
        """Bytes of virtual address space that one entry covers."""
        return 1 << self.shift

    def index(self, va: int) -> int:
        """Index (0 to 511) of the entry for ``va``."""
        return (va >> self.shift) & (ENTRIES - 1)


PTE = Level("pte", "PTE", PAGE_SHIFT, "always")
PMD = Level("pmd", "PDE", 21, "pse")
PUD = Level("pud", "PDPE", 30, "pse")
P4D = Level("p4d", "PML4E", 39, "never")
PGD5 = Level("pgd", "PML5E", 48, "never")
PGD4 = Level("pgd", "PML4E", 39, "never")


@dataclass(frozen=True, slots=True)
class PagingMode:
    """A paging mode: its levels from the root down, and how many address bits they translate."""

    name: str
    levels: tuple[Level, ...]
    va_bits: int

    def level(self, name: str) -> Level | None:
        """The level that Linux calls ``name``, None when this mode does not have it."""
        return next((level for level in self.levels if level.name == name), None)


LEVEL4 = PagingMode("4-level", (PGD4, PUD, PMD, PTE), 48)
LEVEL5 = PagingMode("5-level", (PGD5, P4D, PUD, PMD, PTE), 57)

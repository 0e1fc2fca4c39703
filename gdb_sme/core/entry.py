# SPDX-License-Identifier: GPL-2.0-or-later
"""One page-table entry: the raw value, and everything else derived from it.

Bits: AMD APM volume 2, section 5.4 ("Page-Translation-Table Entry Fields"); the names are those of
arch/x86/include/asm/pgtable_types.h (6.1 and 6.12), without the _PAGE_ prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.address import PAGE_FRAME_MASK, PHYSICAL_BITS
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import Level

PRESENT = 1 << 0
RW = 1 << 1
USER = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
PSE = 1 << 7  #: in a pmd or pud; the same bit is PAT in a pte
PAT = 1 << 7
GLOBAL = 1 << 8
SOFTW1 = 1 << 9
SOFTW2 = 1 << 10
SOFTW3 = 1 << 11
PAT_LARGE = 1 << 12  #: in a 2 MiB or 1 GiB leaf
PKEY_MASK = 0xF << 59
NX = 1 << 63

_COMMON = (
    (PRESENT, "PRESENT"),
    (RW, "RW"),
    (USER, "USER"),
    (PWT, "PWT"),
    (PCD, "PCD"),
    (ACCESSED, "ACCESSED"),
    (DIRTY, "DIRTY"),
)
_SOFTWARE = ((SOFTW1, "SOFTW1"), (SOFTW2, "SOFTW2"), (SOFTW3, "SOFTW3"))
#: Bits 52 to 58: the hardware ignores them. Linux uses some as _PAGE_SOFTW4 and _PAGE_SOFTW5, at
#: places that moved between versions, so they are named by their number.
_IGNORED = tuple((1 << bit, f"BIT{bit}") for bit in range(52, 59))


@dataclass(frozen=True, slots=True)
class Entry:
    """A page-table entry at a known level.

    Attributes:
        raw: the 64 bits as they stand in the table.
        level: where it was found.
        enc: the encryption bit in force.
    """

    raw: int
    level: Level
    enc: EncryptionBit

    @property
    def present(self) -> bool:
        """Whether the hardware uses the entry."""
        return bool(self.raw & PRESENT)

    @property
    def leaf(self) -> bool:
        """Whether a present entry maps memory itself (bit 7 makes no leaf of a pgd or p4d)."""
        if self.level.leaf == "always":
            return True
        return self.level.leaf == "pse" and bool(self.raw & PSE)

    @property
    def large(self) -> bool:
        """Whether it is a leaf above the pte level: 2 MiB or 1 GiB."""
        return self.leaf and self.level.leaf != "always"

    @property
    def address_mask(self) -> int:
        """The bits that hold the physical address: fewer in a large page, never the C-bit."""
        mask = PAGE_FRAME_MASK & ~self.enc.mask
        return mask & ~(self.level.span - 1) if self.large else mask

    @property
    def pa(self) -> int:
        """Physical address it points to: the page's start, or the next table's."""
        return self.raw & self.address_mask

    @property
    def pfn(self) -> int:
        """Page frame number of `pa`."""
        return self.pa >> 12

    @property
    def c_bit(self) -> bool:
        """Whether the encryption bit is set, whatever it means."""
        return self.enc.is_set(self.raw)

    @property
    def encrypted(self) -> bool:
        """Whether what it points to (a page, or the next table) is reached encrypted."""
        return self.enc.encrypted(self.raw)

    @property
    def cache_index(self) -> int:
        """Index (0 to 7) into the PAT MSR: PAT, PCD, PWT. Tables use only PCD and PWT."""
        pat = PAT_LARGE if self.large else PAT if self.leaf else 0
        return 4 * bool(self.raw & pat) + 2 * bool(self.raw & PCD) + bool(self.raw & PWT)

    @property
    def pkey(self) -> int:
        """Protection key (bits 62:59), meaningful for user leaves when CR4.PKE is set."""
        return (self.raw & PKEY_MASK) >> 59

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of all bits set outside the address, in bit order, then ENC for the C-bit.

        With `address_mask`, and in a large page the reserved bits below the address, they account
        for all 64 bits: see `flag_bits`.
        """
        return tuple(name for mask, name in flag_bits(self) if self.raw & mask)

    def reserved(self, physical_bits: int = PHYSICAL_BITS, nx_enabled: bool = True) -> int:
        """Bits that are set although the hardware demands zero there, as a mask.

        Args:
            physical_bits: physical address width of the CPU, 36 to 52.
            nx_enabled: EFER.NXE; without it bit 63 is reserved.
        """
        must_be_zero = PAGE_FRAME_MASK & ~((1 << physical_bits) - 1) & ~self.enc.mask
        if self.level.leaf == "never":
            must_be_zero |= PSE
        if self.large:
            must_be_zero |= (self.level.span - 1) & PAGE_FRAME_MASK & ~PAT_LARGE
        if not nx_enabled:
            must_be_zero |= NX
        return self.raw & must_be_zero if self.present else 0


def flag_bits(entry: Entry) -> tuple[tuple[int, str], ...]:
    """Every bit outside the address field with its name at this entry's level, lowest first.

    The C-bit comes last as ENC (``_PAGE_ENC``); where encryption is by a clear bit, as SHARED.
    """
    if entry.large:
        bit7: tuple[tuple[int, str], ...] = ((PSE, "PSE"),)
        bit12: tuple[tuple[int, str], ...] = ((PAT_LARGE, "PAT_LARGE"),)
    else:
        bit7 = ((PAT, "PAT") if entry.level.leaf == "always" else (PSE, "PSE"),)
        bit12 = ()
    keys = tuple((1 << bit, f"PKEY_BIT{bit - 59}") for bit in range(59, 63))
    enc = ((entry.enc.mask, "ENC" if entry.enc.set_is_encrypted else "SHARED"),)
    return (
        *_COMMON,
        *bit7,
        (GLOBAL, "GLOBAL"),
        *_SOFTWARE,
        *bit12,
        *_IGNORED,
        *keys,
        (NX, "NX"),
        *(enc if entry.enc.mask else ()),
    )

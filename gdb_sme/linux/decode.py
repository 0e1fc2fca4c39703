# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare 64-bit value read as a page-table entry, CR3 or pgprot: the answer of `sme decode`."""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.address import PAGE_FRAME_MASK, U64
from gdb_sme.core.cbit import LOWEST_C_BIT, EncryptionBit
from gdb_sme.core.cr3 import Cr3
from gdb_sme.core.entry import GLOBAL, NX, PAT_LARGE, PKEY_MASK, PSE, SOFTW1, Entry
from gdb_sme.core.paging import LEVEL5, PGD4, PMD, PTE, PUD, Level, PagingMode
from gdb_sme.errors import AddressError, UsageError
from gdb_sme.linux.macros import MacroMatch, match_entry, match_pgprot
from gdb_sme.linux.nonpresent import NonPresent, SwapLayout, decode_nonpresent

#: What a value can be read as; the first five are the levels of the tables.
LEVEL_NAMES = ("pgd", "p4d", "pud", "pmd", "pte", "cr3", "pgprot")

#: In a table's entry Linux sets none of these (but NX in a pgd under page-table isolation).
_LEAF_ONLY = GLOBAL | NX | PKEY_MASK | SOFTW1
#: PCIDs of Linux: kern_pcid(asid) is asid + 1 with 6 dynamic ASIDs, user_pcid() sets bit 11
#: (arch/x86/mm/tlb.c, 6.1 and 6.12).
_PCIDS = frozenset(pcid | user for pcid in range(1, 7) for user in (0, 1 << 11))
_PWT_PCD = 3 << 3


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read the value.

    Attributes:
        kind: ``"entry"``, ``"cr3"`` or ``"pgprot"``.
        level: what it is read as: a level's name, ``"table"`` (an entry of any level that points to
            the next table), ``"cr3"`` or ``"pgprot"``.
        c_bit: the encryption bit; None where a non-present entry has other uses for it.
        encrypted: what the bit means for memory reached through the value; None likewise.
        flags: names of all bits outside the address, ENC included.
        pa: physical address that it points to, None when it points nowhere.
        page_size: bytes of the page for a leaf, None otherwise.
        reserved: bits set that the hardware wants clear, as a mask.
        cache_index: index into the PAT MSR, None for CR3 and pgprot.
        pcid: the PCID of a CR3 value, None when its low bits are flags.
        macro: the kernel's macro for these flags, None when none is near.
        nonpresent: what a non-present entry holds, None for a present one.
    """

    kind: str
    level: str
    c_bit: bool | None
    encrypted: bool | None
    flags: tuple[str, ...]
    pa: int | None = None
    page_size: int | None = None
    reserved: int = 0
    cache_index: int | None = None
    pcid: int | None = None
    macro: MacroMatch | None = None
    nonpresent: NonPresent | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A value and its readings.

    Attributes:
        value: the value, 64 bits.
        enc: the encryption bit in force.
        readings: the likeliest first; one when the level was given.
        assumed: why it was read so, empty when the level was given.
        hint: what to try, empty when there is nothing to suggest.
    """

    value: int
    enc: EncryptionBit
    readings: tuple[Reading, ...]
    assumed: str = ""
    hint: str = ""


def decode(
    value: int,
    level_name: str | None,
    enc: EncryptionBit,
    mode: PagingMode,
    layout: SwapLayout | None = None,
) -> Decoded:
    """Read ``value`` as what ``level_name`` says, or as what it plausibly is.

    Args:
        value: 0 to 2**64-1.
        level_name: one of `LEVEL_NAMES`, or None. With 4 levels a p4d is folded into the pgd.
        enc: the encryption bit in force.
        mode: the paging mode, for the width of a PFN in a migration entry.
        layout: the kernel's special swap types, None when they are not known.

    Raises:
        AddressError: ``value`` does not fit in 64 bits.
        UsageError: ``level_name`` is none that is known.
    """
    if not 0 <= value <= U64:
        raise AddressError(f"{value:#x} does not fit in 64 bits")
    hint = _hint(value, enc)
    if level_name is None:
        levels, assumed = _plausible(value, enc)
        readings = tuple(_read(value, level, enc, mode, layout) for level in levels)
        return Decoded(value, enc, readings, assumed, hint)
    if level_name not in LEVEL_NAMES:
        raise UsageError(f"no level {level_name!r}: use one of {', '.join(LEVEL_NAMES)}")
    return Decoded(value, enc, (_read(value, level_name, enc, mode, layout),), hint=hint)


def _plausible(value: int, enc: EncryptionBit) -> tuple[tuple[str, ...], str]:
    """What ``value`` can be, the likeliest first, and how that was seen."""
    if value == 0:
        return ("pte",), "all bits clear: an empty entry of any level"
    low, address = value & 0xFFF, enc.address(value)
    if not address or (address == PAT_LARGE and value & PSE):
        return ("pgprot",), "no address bits: flags alone"
    if low & ~_PWT_PCD == 0:
        return ("cr3",), "page aligned, no flags: a CR3 value"
    if not value & 1:
        if low in _PCIDS:
            return ("cr3", "pte"), "PRESENT is clear and the low bits are a PCID: a CR3 value"
        if value & PSE:
            return (
                "pmd",
                "pte",
            ), "PRESENT is clear, bit 7 is set: a non-present large pmd, or a pte"
        return ("pte",), "PRESENT is clear: a non-present entry, a pte or of the same form above"
    if low in _PCIDS:
        return ("cr3", "table", "pte"), "the low bits can be a PCID: a CR3 value, or an entry"
    if value & PSE:
        if address & (PMD.span - 1) & ~PAT_LARGE:
            return ("pte",), "bit 7 is set, the address is not 2 MiB aligned: PAT in a pte"
        if address & (PUD.span - 1) & ~PAT_LARGE:
            return ("pmd",), "bit 7 is set, the address is 2 MiB aligned: a large pmd"
        return ("pmd", "pud"), "bit 7 is set, the address is 1 GiB aligned: a large pmd or pud"
    if value & _LEAF_ONLY:
        return ("pte",), "bit 7 is clear, with flags that no table's entry has: a pte"
    table = match_entry(Entry(value, PMD, enc))
    if table is not None and table.exact:
        return ("table", "pte"), "bit 7 is clear, with the flags of a table: a pgd, p4d, pud or pmd"
    return ("pte", "table"), "bit 7 is clear: a pte, or an entry that points to a table"


def _hint(value: int, enc: EncryptionBit) -> str:
    """What to say when the address looks as if it had a C-bit that nobody told about."""
    high = value & PAGE_FRAME_MASK & ~((1 << LOWEST_C_BIT) - 1)
    if enc.mask or high.bit_count() != 1:
        return ""
    bit = high.bit_length() - 1
    return f"bit {bit} is set in the address: if it is the C-bit, use --c-bit {bit}"


def _read(
    value: int, name: str, enc: EncryptionBit, mode: PagingMode, layout: SwapLayout | None
) -> Reading:
    """``value`` read as ``name``."""
    if name == "cr3":
        return _read_cr3(value, enc)
    if name == "pgprot":
        return _read_pgprot(value, enc)
    return _read_entry(value, name, enc, mode, layout)


def _read_cr3(value: int, enc: EncryptionBit) -> Reading:
    cr3 = Cr3(value, enc, pcide=bool(value & 0xFFF & ~_PWT_PCD))
    return Reading("cr3", "cr3", cr3.c_bit, cr3.encrypted, cr3.flags, pa=cr3.pa, pcid=cr3.pcid)


def _read_pgprot(value: int, enc: EncryptionBit) -> Reading:
    # Whether bit 7 is PSE or PAT is the nearest macro's to say; PSE is by far the more usual.
    macro = match_pgprot(value & ~enc.address(value) | value & PAT_LARGE, enc)
    level = PTE if macro is not None and macro.macro.kind == "page" else PMD
    entry = Entry(value, level, enc)
    return Reading("pgprot", "pgprot", entry.c_bit, entry.encrypted, entry.flags, macro=macro)


def _read_entry(
    value: int, name: str, enc: EncryptionBit, mode: PagingMode, layout: SwapLayout | None
) -> Reading:
    entry = Entry(value, _level(name), enc)
    if not entry.present:
        held = decode_nonpresent(entry, mode, layout)
        return Reading(
            "entry",
            name,
            c_bit=held.c_bit,
            encrypted=None if held.c_bit is None else entry.encrypted,
            flags=held.flags,
            macro=match_entry(entry) if held.kind == "protnone" else None,
            nonpresent=held,
        )
    return Reading(
        "entry",
        name,
        c_bit=entry.c_bit,
        encrypted=entry.encrypted,
        flags=entry.flags,
        pa=entry.pa,
        page_size=entry.level.span if entry.leaf else None,
        reserved=entry.reserved(),
        cache_index=entry.cache_index,
        macro=match_entry(entry),
    )


def _level(name: str) -> Level:
    """The level called ``name``: a pgd is alike with 4 and 5 levels, a table is read as a pmd."""
    if name == "pgd":
        return PGD4
    level = LEVEL5.level("pmd" if name == "table" else name)
    assert level is not None, name
    return level

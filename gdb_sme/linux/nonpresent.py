# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries that the hardware does not use, and what Linux keeps in them.

arch/x86/include/asm/pgtable_64.h (the format), pgtable-invert.h (inverted PFNs, 4.19 and later),
pgtable.h (pte_present(), pmd_present()), include/linux/swap.h (type numbers) and swapops.h
(offsets), 6.1 and 6.12.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.address import PAGE_FRAME_MASK, PAGE_SHIFT
from gdb_sme.core.entry import GLOBAL, PSE, PWT, RW, USER, Entry
from gdb_sme.core.paging import LEVEL5, PagingMode
from gdb_sme.core.ports import Symbols

#: _PAGE_PROTNONE is _PAGE_GLOBAL: in an entry without PRESENT, bit 8 says "present to Linux".
PROTNONE = GLOBAL

_TYPE_SHIFT, _TYPES = 59, 32
_OFFSET_SHIFT, _OFFSET_BITS = 9, 50
_HIGHEST_OFFSET_BIT = 1 << (_OFFSET_SHIFT + _OFFSET_BITS - 1)
#: How many bits at the top of the PFN field decide whether it is inverted.
_HIGH_BITS = 6
#: _PAGE_SWP_SOFT_DIRTY, _PAGE_SWP_UFFD_WP, _PAGE_SWP_EXCLUSIVE (pgtable_types.h, pgtable.h).
_SWAP_FLAGS = ((RW, "SOFT_DIRTY"), (USER, "UFFD_WP"), (PWT, "EXCLUSIVE"))
#: SWP_MIG_YOUNG and SWP_MIG_DIRTY, above the PFN.
_MIGRATION_FLAGS = ((1 << 0, "YOUNG"), (1 << 1, "DIRTY"))
#: MAX_PHYSMEM_BITS (asm/sparsemem.h): 52 with 5-level paging, else 46.
_PHYSMEM_BITS_4, _PHYSMEM_BITS_5 = 46, 52
#: Type numbers below this are swap files in every configuration of 6.1 and 6.12.
_ALWAYS_SWAP = 22
_MARKERS = ((1 << 0, "MARKER_UFFD_WP"), (1 << 1, "MARKER_POISONED"))

_MIGRATION = ("migration-read", "migration-read-exclusive", "migration-write")
_DEVICE = (
    "device-private-write",
    "device-private-read",
    "device-exclusive-write",
    "device-exclusive-read",
)
#: Kinds whose offset is a page frame number (is_pfn_swap_entry(); swapin-error in 6.1).
_WITH_PFN = frozenset({"hwpoison", "swapin-error", *_MIGRATION, *_DEVICE})


@dataclass(frozen=True, slots=True)
class SwapLayout:
    """Which special swap types a kernel has; they take the highest of the 32 type numbers.

    Attributes:
        hwpoison: CONFIG_MEMORY_FAILURE.
        migration: CONFIG_MIGRATION.
        device: CONFIG_DEVICE_PRIVATE.
        pte_marker: CONFIG_PTE_MARKER in 6.1, always in 6.12.
        swapin_error: SWP_SWAPIN_ERROR, in 6.1 alone of the two.
    """

    hwpoison: bool = True
    migration: bool = True
    device: bool = True
    pte_marker: bool = True
    swapin_error: bool = False

    @property
    def special(self) -> tuple[str, ...]:
        """Kinds of the special types, in the order of their numbers."""
        return (
            *(("hwpoison",) if self.hwpoison else ()),
            *(_MIGRATION if self.migration else ()),
            *(_DEVICE if self.device else ()),
            *(("pte-marker",) if self.pte_marker else ()),
            *(("swapin-error",) if self.swapin_error else ()),
        )

    @property
    def max_swapfiles(self) -> int:
        """MAX_SWAPFILES: the number of the first special type."""
        return _TYPES - len(self.special)

    def kind(self, swap_type: int) -> str:
        """What type number ``swap_type`` (0 to 31) is: ``"swap"`` or a special kind."""
        if swap_type < self.max_swapfiles:
            return "swap"
        return self.special[swap_type - self.max_swapfiles]


def layout_6_1() -> SwapLayout:
    """The layout of 6.1 with every option on: MAX_SWAPFILES is 22."""
    return SwapLayout(swapin_error=True)


def layout_6_12() -> SwapLayout:
    """The layout of 6.12 with every option on: MAX_SWAPFILES is 23."""
    return SwapLayout()


def swap_layout(symbols: Symbols) -> SwapLayout | None:
    """The layout of the kernel that ``symbols`` are of, None when it cannot be told.

    swap_info[] has MAX_SWAPFILES pointers (mm/swapfile.c); which options are on shows by their
    functions. What remains are the marker and, where two numbers remain, 6.1's swapin error.
    """
    size = symbols.size("swap_info")
    if size is None:
        return None
    hwpoison = symbols.address("memory_failure") is not None
    migration = symbols.address("migrate_pages") is not None
    # mm/rmap.c, CONFIG_DEVICE_PRIVATE; renamed to make_device_exclusive() after 6.12
    device = any(
        symbols.address(name) is not None
        for name in ("make_device_exclusive_range", "make_device_exclusive")
    )
    for swapin_error in (False, True):
        layout = SwapLayout(hwpoison, migration, device, True, swapin_error)
        if layout.max_swapfiles * 8 == size:
            return layout
    return None


@dataclass(frozen=True, slots=True)
class NonPresent:
    """What an entry without PRESENT holds.

    Attributes:
        kind: ``"none"`` (all zero), ``"protnone"`` (PROT_NONE, or a NUMA hint), ``"invalidated"``
            (a large page while it is split), ``"cleared"`` (another entry whose PRESENT was taken
            away), ``"swap"``, ``"hwpoison"``, ``"migration-read"``,
            ``"migration-read-exclusive"``, ``"migration-write"``, ``"device-private-read"`` and so
            on, ``"pte-marker"``, ``"swapin-error"``, or ``"special"`` for a type number that only
            the kernel's configuration could name.
        pfn: page frame number, None where the entry holds none.
        c_bit: the encryption bit; None in the swap format, where its place is the offset's.
        flags: names of the bits that keep their meaning, as the kernel calls them.
        swap_type: type number 0 to 31, None outside the swap format.
        swap_offset: offset in pages, None outside the swap format.
    """

    kind: str
    pfn: int | None = None
    c_bit: bool | None = None
    flags: tuple[str, ...] = ()
    swap_type: int | None = None
    swap_offset: int | None = None


def decode_nonpresent(
    entry: Entry, mode: PagingMode, layout: SwapLayout | None = None
) -> NonPresent:
    """What the non-present ``entry`` holds.

    Linux inverts the PFN of an entry that it makes non-present (against L1TF), but code that only
    clears PRESENT in place leaves it as it was, as __startup_64() does in level2_kernel_pgt
    (head64.c). Addresses use few of the high bits, so the majority of them tells the two apart. In
    the swap format, too, the highest bit of the inverted offset is set unless the offset is one
    that no swap file reaches.

    Args:
        entry: an entry without PRESENT, at its level.
        mode: the paging mode, on which the width of a PFN in a migration entry depends.
        layout: the kernel's special types, None when they are not known.
    """
    raw = entry.raw
    if raw == 0:
        return NonPresent("none")
    present_to_linux = {"always": PROTNONE, "pse": PROTNONE | PSE, "never": raw}[entry.level.leaf]
    if raw & present_to_linux or not raw & _HIGHEST_OFFSET_BIT:
        return _without_present(entry)
    return _swap(raw, mode, layout)


def _without_present(entry: Entry) -> NonPresent:
    """An entry in the format of a present one."""
    raw, mask = entry.raw, _pfn_mask(entry)
    high = mask & ~((1 << (mask.bit_length() - _HIGH_BITS)) - 1)
    inverted = (raw & high).bit_count() * 2 > high.bit_count()
    address = (~raw if inverted else raw) & mask & entry.address_mask
    protnone = inverted and bool(raw & PROTNONE)
    return NonPresent(
        kind="protnone" if protnone else "invalidated" if inverted and entry.large else "cleared",
        pfn=address >> PAGE_SHIFT,
        c_bit=entry.c_bit,
        flags=tuple("PROTNONE" if protnone and f == "GLOBAL" else f for f in entry.flags),
    )


def _pfn_mask(entry: Entry) -> int:
    """PTE_PFN_MASK: physical_mask, which on TDX and vTOM ends below the shared bit."""
    enc = entry.enc
    above = 0 if enc.set_is_encrypted else ~(enc.mask - 1)
    return PAGE_FRAME_MASK & ~enc.mask & ~above


def _swap(raw: int, mode: PagingMode, layout: SwapLayout | None) -> NonPresent:
    """An entry in the swap format."""
    swap_type = raw >> _TYPE_SHIFT
    offset = (~raw >> _OFFSET_SHIFT) & ((1 << _OFFSET_BITS) - 1)
    if layout is not None:
        kind = layout.kind(swap_type)
    else:
        kind = "swap" if swap_type < _ALWAYS_SWAP else "special"
    pfn_bits = (_PHYSMEM_BITS_5 if mode is LEVEL5 else _PHYSMEM_BITS_4) - PAGE_SHIFT
    flags = [name for bit, name in _SWAP_FLAGS if raw & bit]
    if kind in _MIGRATION:
        above_pfn = offset >> pfn_bits
        flags += [name for bit, name in _MIGRATION_FLAGS if above_pfn & bit]
    elif kind == "pte-marker":
        flags += [name for bit, name in _MARKERS if offset & bit]
    return NonPresent(
        kind,
        pfn=offset & ((1 << pfn_bits) - 1) if kind in _WITH_PFN else None,
        flags=tuple(flags),
        swap_type=swap_type,
        swap_offset=offset,
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Non-present entries, built here by the formulas of pgtable_64.h and pgtable-invert.h."""

from __future__ import annotations

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.entry import Entry
from gdb_sme.core.paging import LEVEL4, LEVEL5, P4D, PGD4, PMD, PTE, PUD, Level
from gdb_sme.linux.nonpresent import (
    NonPresent,
    SwapLayout,
    decode_nonpresent,
    layout_6_1,
    layout_6_12,
    swap_layout,
)
from tests.fakes import FakeSymbols

C47 = EncryptionBit(1 << 47)
C51 = EncryptionBit(1 << 51)
U64 = (1 << 64) - 1


def swp_entry(swap_type: int, offset: int) -> int:
    """__swp_entry(): ~offset << 14 >> 5 | type << 59, in 64 bits."""
    return ((~offset << 14 & U64) >> 5) | swap_type << 59


def protnone(pfn: int, flags: int, c_mask: int) -> int:
    """pfn_pte(): the PFN inverted within physical_mask, which lacks the C-bit."""
    pfn_mask = 0x000FFFFFFFFFF000 & ~c_mask
    return (~(pfn << 12) & pfn_mask) | flags


def decode(
    raw: int, level: Level = PTE, enc: EncryptionBit = C47, layout: SwapLayout | None = None
) -> NonPresent:
    return decode_nonpresent(Entry(raw, level, enc), LEVEL4, layout)


@pytest.mark.parametrize("level", [PGD4, P4D, PUD, PMD, PTE])
def test_none(level: Level) -> None:
    assert decode(0, level) == NonPresent("none")


@pytest.mark.parametrize("swap_type", [0, 1, 21])
@pytest.mark.parametrize("offset", [0, 1, 0x12345, (1 << 38) - 1])
def test_swap(swap_type: int, offset: int) -> None:
    held = decode(swp_entry(swap_type, offset))
    assert (held.kind, held.swap_type, held.swap_offset) == ("swap", swap_type, offset)
    assert (held.pfn, held.flags) == (None, ())


@pytest.mark.parametrize("enc", [C47, C51])
def test_a_swap_entry_has_no_c_bit(enc: EncryptionBit) -> None:
    """Bits 47 and 51 are part of the inverted offset there, and nearly always set."""
    raw = swp_entry(2, 0x1234)
    assert raw & enc.mask
    assert decode(raw, enc=enc).c_bit is None
    assert "ENC" not in decode(raw, enc=enc).flags


def test_flags_of_a_swap_entry() -> None:
    held = decode(swp_entry(0, 5) | 0b1110)
    assert held.flags == ("SOFT_DIRTY", "UFFD_WP", "EXCLUSIVE")
    assert held.swap_offset == 5


@pytest.mark.parametrize(
    ("layout", "swap_type", "kind"),
    [
        (layout_6_1(), 21, "swap"),
        (layout_6_1(), 22, "hwpoison"),
        (layout_6_1(), 23, "migration-read"),
        (layout_6_1(), 24, "migration-read-exclusive"),
        (layout_6_1(), 25, "migration-write"),
        (layout_6_1(), 26, "device-private-write"),
        (layout_6_1(), 27, "device-private-read"),
        (layout_6_1(), 28, "device-exclusive-write"),
        (layout_6_1(), 29, "device-exclusive-read"),
        (layout_6_1(), 30, "pte-marker"),
        (layout_6_1(), 31, "swapin-error"),
        (layout_6_12(), 22, "swap"),
        (layout_6_12(), 23, "hwpoison"),
        (layout_6_12(), 26, "migration-write"),
        (layout_6_12(), 30, "device-exclusive-read"),
        (layout_6_12(), 31, "pte-marker"),
        (SwapLayout(hwpoison=False, device=False), 28, "migration-read"),
        (SwapLayout(False, False, False, False, False), 31, "swap"),
        (None, 21, "swap"),
        (None, 22, "special"),
        (None, 31, "special"),
    ],
)
def test_type_numbers(layout: SwapLayout | None, swap_type: int, kind: str) -> None:
    held = decode(swp_entry(swap_type, 0x1234), layout=layout)
    assert (held.kind, held.swap_type) == (kind, swap_type)


def test_max_swapfiles() -> None:
    assert (layout_6_1().max_swapfiles, layout_6_12().max_swapfiles) == (22, 23)


@pytest.mark.parametrize(
    ("functions", "swapfiles", "layout"),
    [
        # as in Debian's cloud kernels: swap_info[] has 27 pointers in both
        (["migrate_pages"], 27, SwapLayout(False, True, False, True, True)),
        (["migrate_pages", "memory_failure"], 27, SwapLayout(True, True, False, True, False)),
        (["migrate_pages", "memory_failure", "make_device_exclusive_range"], 22, layout_6_1()),
        (["migrate_pages", "memory_failure", "make_device_exclusive_range"], 23, layout_6_12()),
        (["migrate_pages", "memory_failure", "make_device_exclusive"], 23, layout_6_12()),
        (["migrate_pages", "memory_failure"], 25, None),
        (["migrate_pages"], None, None),
    ],
)
def test_swap_layout_of_a_kernel(
    functions: list[str], swapfiles: int | None, layout: SwapLayout | None
) -> None:
    sizes = {} if swapfiles is None else {"swap_info": 8 * swapfiles}
    symbols = FakeSymbols(dict.fromkeys(functions, 0xFFFFFFFF81000000), sizes)
    assert swap_layout(symbols) == layout


def test_migration_keeps_pfn_young_and_dirty() -> None:
    pfn = 0x12345
    raw = swp_entry(25, pfn | 1 << 34 | 1 << 35)
    held = decode_nonpresent(Entry(raw, PTE, C47), LEVEL4, layout_6_1())
    assert (held.kind, held.pfn, held.flags) == ("migration-write", pfn, ("YOUNG", "DIRTY"))
    raw = swp_entry(23, pfn | 1 << 40)
    held = decode_nonpresent(Entry(raw, PMD, C51), LEVEL5, layout_6_1())
    assert (held.kind, held.pfn, held.flags) == ("migration-read", pfn, ("YOUNG",))
    held = decode(swp_entry(24, pfn), layout=layout_6_1())
    assert (held.pfn, held.flags) == (pfn, ())


def test_hwpoison_has_a_pfn_and_a_marker_its_bits() -> None:
    assert decode(swp_entry(22, 0x777), layout=layout_6_1()).pfn == 0x777
    marker = decode(swp_entry(31, 0b11), layout=layout_6_12())
    assert (marker.pfn, marker.flags) == (None, ("MARKER_UFFD_WP", "MARKER_POISONED"))
    assert decode(swp_entry(31, 0b01), layout=layout_6_12()).flags == ("MARKER_UFFD_WP",)


@pytest.mark.parametrize("enc", [C47, C51, NO_ENCRYPTION])
@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("pfn", [0, 1, 0x12345, 0x3FFFF, 0x1000000])
def test_protnone_has_an_inverted_pfn_and_the_c_bit_as_it_was(
    pfn: int, encrypted: bool, enc: EncryptionBit
) -> None:
    flags = 0x120 | (enc.mask if encrypted else 0)
    held = decode(protnone(pfn, flags, enc.mask), enc=enc)
    assert (held.kind, held.pfn) == ("protnone", pfn)
    assert held.c_bit is (encrypted and bool(enc.mask))
    assert held.flags[:2] == ("ACCESSED", "PROTNONE")
    assert held.swap_type is None


def test_protnone_of_a_large_page() -> None:
    """A huge page with a NUMA hint: ACCESSED, DIRTY, PSE and PROTNONE, low PFN bits clear."""
    raw = protnone(0x40000, 0x1E0 | 1 << 47, 1 << 47) & ~0x1FF000
    held = decode(raw, PMD)
    assert (held.kind, held.pfn, held.c_bit) == ("protnone", 0x40000, True)


def test_a_large_page_while_it_is_split() -> None:
    """pmd_mkinvalid() takes PRESENT, keeps PSE, and inverts the PFN."""
    raw = protnone(0x40000, 0x80000000000000E6 | 1 << 47, 1 << 47) & ~0x1FF000
    held = decode(raw, PMD)
    assert (held.kind, held.pfn, held.c_bit) == ("invalidated", 0x40000, True)
    assert "PSE" in held.flags


@pytest.mark.parametrize(
    ("raw", "level", "pfn"),
    [
        (0x1E001E2, PMD, 0x1E00),  # measured: level2_kernel_pgt outside the image, 6.1
        (0x00008000400001E2, PUD, 0x40000),
        (0x8000800003600162, PTE, 0x3600),
        (0x8000800003600062, PTE, 0x3600),  # neither GLOBAL nor PSE: still no swap offset
        (0x0000800002A15066, PGD4, 0x2A15),
        (0x0000800002A15066, P4D, 0x2A15),
    ],
)
def test_only_present_was_cleared(raw: int, level: Level, pfn: int) -> None:
    held = decode(raw, level)
    assert (held.kind, held.pfn) == ("cleared", pfn)
    assert held.c_bit is bool(raw & 1 << 47)
    assert "PRESENT" not in held.flags
    assert "PROTNONE" not in held.flags


def test_cleared_with_an_inverted_pfn() -> None:
    """set_memory_np(): PRESENT, RW and GLOBAL go, pfn_pte() inverts."""
    held = decode(protnone(0x3600, 0x8000000000000060 | 1 << 47, 1 << 47))
    assert (held.kind, held.pfn, held.c_bit) == ("cleared", 0x3600, True)


def test_cleared_is_told_from_inverted_with_an_unknown_c_bit() -> None:
    held = decode(0x0008000001E001E2, PMD, NO_ENCRYPTION)
    assert held.kind == "cleared"


def test_a_shared_bit_ends_the_inverted_field() -> None:
    """TDX cuts physical_mask below the shared bit."""
    shared = EncryptionBit(1 << 47, set_is_encrypted=False)
    raw = (~(0x3600 << 12) & ((1 << 47) - 1) & ~0xFFF) | 0x120
    held = decode(raw, enc=shared)
    assert (held.kind, held.pfn, held.c_bit) == ("protnone", 0x3600, False)

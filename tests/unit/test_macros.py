# SPDX-License-Identifier: GPL-2.0-or-later
"""Macro values as they are in real kernels: read from the data of Debian's vmlinux 6.1 and 6.12
(early_pmd_flags, level2_kernel_pgt, protection_map), from live tables, and from the kernel's own
debug output; not computed from bits here."""

from __future__ import annotations

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.entry import Entry
from gdb_sme.core.paging import P4D, PGD4, PMD, PTE, PUD, Level
from gdb_sme.linux.macros import MACROS, match_entry, match_pgprot

C47 = EncryptionBit(1 << 47)

#: Numbers of 6.12 (6.1 where the name says so), without _PAGE_ENC.
KNOWN = {
    "_KERNPG_TABLE_NOENC": 0x63,
    "_PAGE_TABLE_NOENC": 0x67,
    "__PAGE_KERNEL": 0x8000000000000163,
    "__PAGE_KERNEL_EXEC": 0x163,
    "__PAGE_KERNEL_RO (6.12)": 0x8000000000000121,
    "__PAGE_KERNEL_RO (6.1)": 0x8000000000000161,
    "__PAGE_KERNEL_ROX (6.12)": 0x121,
    "__PAGE_KERNEL_ROX (6.1)": 0x161,
    "__PAGE_KERNEL_NOCACHE": 0x800000000000017B,
    "__PAGE_KERNEL_VVAR (6.12)": 0x8000000000000125,
    "__PAGE_KERNEL_VVAR (6.1)": 0x8000000000000165,
    "__PAGE_KERNEL_WP": 0x80000000000001EB,
    "__PAGE_KERNEL_LARGE": 0x80000000000001E3,
    "__PAGE_KERNEL_LARGE_EXEC": 0x1E3,
    "early_pmd_flags (initial)": 0xE3,
    "PMD_FLAGS_LARGE": 0xE3,
    "PMD_FLAGS_DEC_WP": 0x10EB,
    "PTE_FLAGS": 0x63,
    "PTE_FLAGS_DEC_WP": 0xEB,
    "PAGE_NONE": 0x120,
    "PAGE_SHARED": 0x8000000000000027,
    "PAGE_SHARED_EXEC": 0x27,
    "PAGE_COPY": 0x8000000000000025,
    "PAGE_READONLY": 0x8000000000000025,
    "PAGE_COPY_EXEC": 0x25,
    "PAGE_READONLY_EXEC": 0x25,
}


def test_known_numbers() -> None:
    flags = {macro.name: macro.flags for macro in MACROS}
    assert {name: flags[name] for name in KNOWN} == KNOWN


def test_names_are_unique() -> None:
    names = [macro.name for macro in MACROS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("raw", "level", "text"),
    [
        (0x0000800002A15067, PGD4, "_PAGE_TABLE"),
        (0x0000800002A16063, PUD, "_KERNPG_TABLE"),
        (0x0000000002002063, PGD4, "_KERNPG_TABLE_NOENC"),
        (0x0000000002A12063, P4D, "_KERNPG_TABLE_NOENC"),
        (0x8000800002A001E3, PMD, "PAGE_KERNEL_LARGE"),
        (0x00008000010001E3, PMD, "PAGE_KERNEL_LARGE_EXEC"),
        (0x00000000010001E3, PMD, "__PAGE_KERNEL_LARGE_EXEC"),
        (0x80008000400001E3, PUD, "PAGE_KERNEL_LARGE"),
        (0x8000000003600163, PTE, "__PAGE_KERNEL"),
        (0x8000800004420163, PTE, "PAGE_KERNEL"),
        (0x0000800001000161, PTE, "PAGE_KERNEL_ROX (6.1)"),
        (0x0000800001000121, PTE, "PAGE_KERNEL_ROX (6.12)"),
        (0x80000000FEC0017B, PTE, "__PAGE_KERNEL_NOCACHE"),
        # early page tables: sme_map_bootdata(), and early_make_pgtable() after sme_early_init()
        (0x80000000000000E3, PMD, "__PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL"),
        (0x80008000000000E3, PMD, "PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL"),
        # bit 12 is PAT_LARGE in a large page, and address in a pte
        (0x00000000022010EB, PMD, "PMD_FLAGS_DEC_WP"),
        (0x8000000003601163, PTE, "__PAGE_KERNEL"),
        (0x0000800012345867, PTE, "PAGE_SHARED_EXEC | _PAGE_ENC | _PAGE_DIRTY | _PAGE_SOFTW3"),
        (0x0000800002A1506B, PUD, "_KERNPG_TABLE | _PAGE_PWT"),
        (0x8000800002A15067, PGD4, "_PAGE_TABLE | _PAGE_NX"),
        (0x0200800002A16063, PMD, "_KERNPG_TABLE | bit 57"),
    ],
)
def test_entries(raw: int, level: Level, text: str) -> None:
    match = match_entry(Entry(raw, level, C47))
    assert match is not None
    assert str(match) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0xE3, "early_pmd_flags (initial)"),
        (0x80000000000000E3, "__PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL"),
        (0x80008000000000E3, "PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL"),
        (0x8000000000E3, "PMD_FLAGS_ENC"),
        (0x63, "_KERNPG_TABLE_NOENC"),
        (0x800000000063, "_KERNPG_TABLE"),
        (0x8000800000000163, "PAGE_KERNEL"),
        # protection_map after add_encrypt_protection_map()
        (0x800000000120, "PAGE_NONE | _PAGE_ENC"),
        (0x8000800000000025, "PAGE_COPY | _PAGE_ENC"),
        (0x800000000027, "PAGE_SHARED_EXEC | _PAGE_ENC"),
        (0x80008000000001EB, "__PAGE_KERNEL_ENC_WP"),
    ],
)
def test_pgprots(value: int, text: str) -> None:
    match = match_pgprot(value, C47)
    assert match is not None
    assert str(match) == text


def test_exact_definition_and_aliases() -> None:
    copy = match_pgprot(0x8000000000000025, C47)
    assert copy is not None
    assert copy.exact
    assert copy.macro.name == "PAGE_COPY"
    assert copy.aliases == ("PAGE_COPY_NOEXEC", "PAGE_READONLY")
    kernel = match_pgprot(0x8000800000000163, C47)
    assert kernel is not None
    assert kernel.macro.definition == "__PAGE_KERNEL | _PAGE_ENC"
    assert kernel.aliases == ("__PAGE_KERNEL_ENC",)


def test_without_encryption_enc_and_noenc_are_the_same() -> None:
    match = match_entry(Entry(0x2A15067, PGD4, NO_ENCRYPTION))
    assert match is not None
    assert (match.macro.name, match.aliases) == ("_PAGE_TABLE", ("_PAGE_TABLE_NOENC",))


def test_both_directions_of_difference() -> None:
    match = match_pgprot(0x80000000000000FB & ~0x8, NO_ENCRYPTION)  # large, no GLOBAL, PCD
    assert match is not None
    assert (match.plus, match.minus) == (("_PAGE_PCD",), ("_PAGE_GLOBAL",))
    assert str(match) == "(__PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL) | _PAGE_PCD"
    assert not match.exact
    two = match_entry(Entry(0x22, PGD4, NO_ENCRYPTION))
    assert two is not None
    assert str(two) == "_KERNPG_TABLE & ~(_PAGE_PRESENT | _PAGE_DIRTY)"


@pytest.mark.parametrize("raw", [0x18, 0x7F00000000000063, 0xE1B])
def test_more_than_two_bits_away_is_no_macro(raw: int) -> None:
    assert match_entry(Entry(raw, PGD4, C47)) is None


def test_the_shared_bit_is_no_page_enc() -> None:
    shared = EncryptionBit(1 << 47, set_is_encrypted=False)
    match = match_entry(Entry(0x8000800003600163, PTE, shared))
    assert match is not None
    assert str(match) == "__PAGE_KERNEL | bit 47"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries against numbers from the APM's figures and from live kernels, not from the code."""

from __future__ import annotations

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.entry import Entry, flag_bits
from gdb_sme.core.paging import P4D, PGD4, PGD5, PMD, PTE, PUD, Level

C47 = EncryptionBit(1 << 47)
C51 = EncryptionBit(1 << 51)


def test_a_measured_large_kernel_page() -> None:
    """Debian's 6.1 with SME active: the pmd of init_top_pgt."""
    entry = Entry(0x8000800002A001E3, PMD, C47)
    assert entry.present
    assert entry.leaf
    assert entry.large
    assert entry.pa == 0x2A00000
    assert entry.pfn == 0x2A00
    assert entry.c_bit
    assert entry.encrypted
    assert entry.flags == (
        "PRESENT", "RW", "ACCESSED", "DIRTY", "PSE", "GLOBAL", "NX", "ENC",
    )  # fmt: skip
    assert entry.cache_index == 0
    assert entry.reserved() == 0


def test_a_measured_decrypted_page() -> None:
    """The same kernel: .bss..decrypted, a pte without C-bit."""
    entry = Entry(0x8000000003600163, PTE, C47)
    assert (entry.pa, entry.c_bit, entry.encrypted) == (0x3600000, False, False)
    assert entry.flags == ("PRESENT", "RW", "ACCESSED", "DIRTY", "GLOBAL", "NX")


def test_a_measured_table() -> None:
    entry = Entry(0x0000800002A15067, PGD4, C47)
    assert (entry.pa, entry.leaf, entry.c_bit) == (0x2A15000, False, True)
    assert entry.flags == ("PRESENT", "RW", "USER", "ACCESSED", "DIRTY", "ENC")


@pytest.mark.parametrize(
    ("bit", "level", "name"),
    [
        (0, PTE, "PRESENT"),
        (1, PTE, "RW"),
        (2, PTE, "USER"),
        (3, PTE, "PWT"),
        (4, PTE, "PCD"),
        (5, PTE, "ACCESSED"),  # a peer tests bit 4, and compares the result with 1
        (6, PTE, "DIRTY"),  # a peer has it inverted
        (7, PTE, "PAT"),  # a peer takes PAT of a 4 KiB page from bit 12
        (7, PGD4, "PSE"),
        (8, PTE, "GLOBAL"),  # a peer says GLOBAL always
        (9, PTE, "SOFTW1"),
        (10, PTE, "SOFTW2"),
        (11, PTE, "SOFTW3"),
        (52, PTE, "BIT52"),
        (57, PTE, "BIT57"),
        (58, PTE, "BIT58"),
        (59, PTE, "PKEY_BIT0"),
        (62, PTE, "PKEY_BIT3"),
        (63, PTE, "NX"),
        (47, PTE, "ENC"),
    ],
)
def test_each_flag_is_its_bit_alone(bit: int, level: Level, name: str) -> None:
    assert Entry(1 << bit, level, C47).flags == (name,)
    clear = Entry(~(1 << bit) & (1 << 64) - 1, level, C47)
    assert name not in clear.flags


@pytest.mark.parametrize("bit", [12, 13, 20, 40, 46, 48, 51])
def test_address_bits_are_no_flags(bit: int) -> None:
    entry = Entry(1 << bit, PTE, C47)
    assert entry.flags == ()
    assert entry.pa == 1 << bit


def test_pat_is_bit_7_in_a_pte_and_bit_12_in_a_large_page() -> None:
    assert Entry(0x1081, PTE, C47).cache_index == 4
    assert Entry(0x1001, PTE, C47).cache_index == 0
    assert Entry(0x1001, PTE, C47).pa == 0x1000
    assert Entry(0x10E3, PMD, C47).cache_index == 4
    assert Entry(0x10E3, PMD, C47).flags[-1] == "PAT_LARGE"
    assert Entry(0x10E3, PMD, C47).pa == 0
    assert Entry(0x00E3, PMD, C47).cache_index == 0
    assert Entry(0x10FB, PUD, C47).cache_index == 7
    assert Entry(0x007B, PUD, C47).cache_index == 3  # a table has PCD and PWT only
    assert Entry(0x1063, PUD, C47).cache_index == 0


def test_large_pages_start_at_their_size() -> None:
    """A peer takes a 2 MiB page's address from bit 20 on."""
    assert Entry(0x00000000003001E3, PMD, C47).pa == 0x200000
    assert Entry(0x00008000402001E3, PUD, C47).pa == 0x40000000
    assert Entry(0x00008000402001E3, PUD, C47).reserved() == 0x200000


@pytest.mark.parametrize("level", [PGD4, PGD5, P4D])
def test_bit_7_makes_no_leaf_of_a_pgd_or_p4d(level: Level) -> None:
    entry = Entry(0xE3, level, C47)
    assert not entry.leaf
    assert entry.reserved() == 0x80


def test_nx_is_not_part_of_the_address() -> None:
    assert Entry(0x8000000000001067, PGD4, NO_ENCRYPTION).pa == 0x1000


def test_reserved_bits() -> None:
    assert Entry(0x0008000000001063, PTE, C47).reserved() == 0
    assert Entry(0x0008000000001063, PTE, C47).reserved(physical_bits=48) == 1 << 51
    assert Entry(0x0000800000001063, PTE, C47).reserved(physical_bits=40) == 0  # the C-bit is not
    assert Entry(0x0000800000001063, PTE, C51).reserved(physical_bits=40) == 1 << 47
    assert Entry(0x8000000000001063, PTE, C47).reserved(nx_enabled=False) == 1 << 63
    assert Entry(0x8000000000001062, PTE, C47).reserved(nx_enabled=False) == 0  # not present
    assert Entry(0x00000000001FE1E3, PMD, C47).reserved() == 0x1FE000
    assert Entry(0x00000000000011E3, PMD, C47).reserved() == 0


def test_protection_key() -> None:
    assert Entry(0x5800000000001067, PTE, C47).pkey == 0xB


def test_the_bit_of_tdx_is_called_shared() -> None:
    shared = EncryptionBit(1 << 47, set_is_encrypted=False)
    assert Entry(0x0000800000001063, PTE, shared).flags[-1] == "SHARED"
    assert not Entry(0x0000800000001063, PTE, shared).encrypted
    assert Entry(0x0000000000001063, PTE, shared).encrypted


def test_without_encryption_bit_there_is_no_enc() -> None:
    assert "ENC" not in [name for _, name in flag_bits(Entry(0x63, PTE, NO_ENCRYPTION))]
    assert Entry(0x0000800002A15067, PGD4, NO_ENCRYPTION).pa == 0x800002A15000

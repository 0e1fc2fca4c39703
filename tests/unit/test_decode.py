# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.paging import LEVEL4
from gdb_sme.errors import AddressError, UsageError
from gdb_sme.linux.decode import LEVEL_NAMES, Decoded, Reading, decode
from gdb_sme.linux.nonpresent import layout_6_1

C47 = EncryptionBit(1 << 47)


def of(value: int, level: str | None = None, enc: EncryptionBit = C47) -> Decoded:
    return decode(value, level, enc, LEVEL4)


def first(value: int, level: str | None = None, enc: EncryptionBit = C47) -> Reading:
    return of(value, level, enc).readings[0]


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        (0x8000800002A001E3, ["pmd"]),  # measured values
        (0x0000800002A15067, ["table", "pte"]),
        (0x8000000003600163, ["pte"]),
        (0x00008000030B6000, ["cr3"]),
        (0x0000000001E001E2, ["pmd", "pte"]),
        (0x80008000000000E3, ["pgprot"]),
        (0x00000000000001E3, ["pgprot"]),
        (0x00000000000010EB, ["pgprot"]),  # PMD_FLAGS_DEC_WP: bit 12 is PAT_LARGE
        (0x0000000000000120, ["pgprot"]),
        (0x80008000400001E3, ["pmd", "pud"]),
        (0x80008000400011E3, ["pmd", "pud"]),
        (0x80008000402031E3, ["pte"]),  # bit 7 is PAT: not aligned for anything large
        (0x0000800012345025, ["pte", "table"]),
        (0x0000000000001010, ["cr3"]),
        (0x0000800002A10002, ["cr3", "pte"]),
        (0x8000800002A11806, ["cr3", "pte"]),  # user PCID, NOFLUSH
        (0x0000800002A10001, ["cr3", "table", "pte"]),
        (0x0000000000002003, ["cr3", "table", "pte"]),
        (0x0FFFFFFFFFDBB600, ["pte"]),  # a swap entry
        (0, ["pte"]),
    ],
)
def test_plausible_readings(value: int, levels: list[str]) -> None:
    decoded = of(value)
    assert [reading.level for reading in decoded.readings] == levels
    assert decoded.assumed


def test_a_large_page() -> None:
    reading = first(0x8000800002A001E3)
    assert reading.kind == "entry"
    assert (reading.pa, reading.page_size) == (0x2A00000, 2 << 20)
    assert (reading.c_bit, reading.encrypted) == (True, True)
    assert reading.flags == ("PRESENT", "RW", "ACCESSED", "DIRTY", "PSE", "GLOBAL", "NX", "ENC")
    assert str(reading.macro) == "PAGE_KERNEL_LARGE"
    assert (reading.reserved, reading.cache_index, reading.pcid) == (0, 0, None)


def test_a_cr3_value() -> None:
    reading = first(0x00008000030B6000)
    assert (reading.kind, reading.pa, reading.c_bit) == ("cr3", 0x30B6000, True)
    assert (reading.pcid, reading.macro, reading.page_size) == (None, None, None)
    assert first(0x0000800002A11806, "cr3").pcid == 0x806
    assert first(0x0000000002A10018, "cr3").flags == ("PWT", "PCD")
    assert first(0x00000000030B6000).c_bit is False


@pytest.mark.parametrize("level", ["pgd", "p4d", "pud", "pmd", "pte"])
def test_the_level_that_was_asked_for(level: str) -> None:
    decoded = of(0x0000800002A15067, level)
    assert decoded.assumed == ""
    (reading,) = decoded.readings
    assert (reading.level, reading.pa) == (level, 0x2A15000)
    assert (reading.page_size is not None) is (level == "pte")


def test_reserved_bits_of_a_level() -> None:
    assert first(0xE3 | 0x200000, "pgd").reserved == 0x80
    assert first(0x402001E3, "pud").reserved == 0x200000


def test_pgprot_of_a_4k_page_reads_bit_7_as_pat() -> None:
    reading = first(0x80000000000001EB, "pgprot")
    assert str(reading.macro) == "__PAGE_KERNEL_WP"
    assert "PAT" in reading.flags
    large = first(0x80000000000001E3, "pgprot")
    assert "PSE" in large.flags


def test_pgprot_ignores_an_address() -> None:
    assert str(first(0x0000800002A16063, "pgprot").macro) == "_KERNPG_TABLE"


def test_not_present() -> None:
    swapped = first(0x0FFFFFFFFFDBB600)
    assert swapped.nonpresent is not None
    assert (swapped.nonpresent.kind, swapped.nonpresent.swap_type) == ("swap", 1)
    assert swapped.nonpresent.swap_offset == 0x1224
    assert (swapped.c_bit, swapped.encrypted, swapped.pa, swapped.macro) == (None,) * 4
    protnone = first(0x000F7FFFFEDCB120, "pte")
    assert protnone.nonpresent is not None
    assert (protnone.nonpresent.kind, protnone.nonpresent.pfn) == ("protnone", 0x1234)
    assert protnone.encrypted is False
    assert str(protnone.macro) == "PAGE_NONE"


def test_the_swap_layout_is_used() -> None:
    decoded = decode(0xCFFFFFFFFFFFDA00, "pte", C47, LEVEL4, layout_6_1())
    held = decoded.readings[0].nonpresent
    assert held is not None
    assert (held.kind, held.pfn) == ("migration-write", 0x12)


def test_a_c_bit_that_nobody_told_about() -> None:
    decoded = of(0x8000800002A001E3, enc=NO_ENCRYPTION)
    assert decoded.hint == "bit 47 is set in the address: if it is the C-bit, use --c-bit 47"
    assert of(0x8000800002A001E3).hint == ""
    assert of(0x8000000002A001E3, enc=NO_ENCRYPTION).hint == ""
    assert of(0x000F7FFFFEDCB120, enc=NO_ENCRYPTION).hint == ""


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_not_64_bits(value: int) -> None:
    with pytest.raises(AddressError, match="does not fit in 64 bits"):
        of(value)


def test_an_unknown_level() -> None:
    with pytest.raises(UsageError) as error:
        of(0x63, "pde")
    assert str(error.value) == f"no level 'pde': use one of {', '.join(LEVEL_NAMES)}"

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.paging import LEVEL4, LEVEL5
from gdb_sme.core.walk import Permissions, Walk, walk
from gdb_sme.errors import AddressError
from tests.fakes import FakePhys, entries

C47 = EncryptionBit(1 << 47)

# Debian's 6.1 with SME active under QEMU: the tables on the way to &init_top_pgt.
INIT_TOP_PGT = 0xFFFFFFFF82A10000
MEASURED = {
    0x2A10000: entries({511: 0x0000800002A15067}),
    0x2A15000: entries({510: 0x0000800002A16063}),
    0x2A16000: entries({21: 0x8000800002A001E3, 27: 0x0000800002A19063, 22: 0x1E001E2}),
    0x2A19000: entries({0: 0x8000000003600163}),
}


def measured(va: int, **options: object) -> Walk:
    return walk(FakePhys(MEASURED), va, 0x2A10000, LEVEL4, C47, **options)  # type: ignore[arg-type]


def test_a_measured_walk_to_a_large_page() -> None:
    found = measured(INIT_TOP_PGT + 0x123)
    assert [(s.entry.level.name, s.entry_pa, s.index) for s in found.steps] == [
        ("pgd", 0x2A10FF8, 511),
        ("pud", 0x2A15FF0, 510),
        ("pmd", 0x2A160A8, 21),
    ]
    mapping = found.mapping
    assert mapping is not None
    assert mapping.pa == 0x2A10123
    assert mapping.page_size == 2 << 20
    assert mapping.encrypted
    assert mapping.global_
    assert mapping.cache_index == 0
    assert mapping.permissions == Permissions(write=True, user=False, execute=False)
    assert str(mapping.permissions) == "rw-"
    assert found.hole is None
    assert found.unreadable is None


def test_only_the_leaf_decides_on_encryption_of_the_page() -> None:
    found = measured(0xFFFFFFFF83600008)
    assert [step.entry.encrypted for step in found.steps] == [True, True, True, False]
    assert found.mapping is not None
    assert (found.mapping.pa, found.mapping.page_size) == (0x3600008, 4096)
    assert not found.mapping.encrypted


def test_eight_bytes_a_level_are_read() -> None:
    memory = FakePhys(MEASURED)
    walk(memory, INIT_TOP_PGT, 0x2A10000, LEVEL4, C47)
    assert memory.reads == [(0x2A10FF8, 8), (0x2A15FF0, 8), (0x2A160A8, 8)]


def test_a_hole_at_each_level() -> None:
    assert measured(0xFFFF888000000000).hole == "pgd"
    assert measured(0xFFFFFFFFC0000000).hole == "pud"
    stale = measured(0xFFFFFFFF82C00000)
    assert stale.hole == "pmd"
    assert stale.mapping is None
    assert stale.steps[-1].entry.raw == 0x1E001E2
    assert measured(0xFFFFFFFF83601000).hole == "pte"


@pytest.mark.parametrize("va", [0x1234567890123456, 0x0000800000000000, -1, 1 << 64])
def test_not_canonical(va: int) -> None:
    with pytest.raises(AddressError, match="is not canonical"):
        measured(va)


def test_the_message_names_mode_and_bits() -> None:
    with pytest.raises(AddressError) as error:
        measured(0x1234567890123456)
    assert str(error.value) == (
        "0x1234567890123456 is not canonical (4-level paging: bits 63-47 must be equal)"
    )


def test_table_outside_ram() -> None:
    """Without the C-bit the next table's address is far outside RAM: told, after the step to it."""
    found = walk(FakePhys(MEASURED), INIT_TOP_PGT, 0x2A10000, LEVEL4, NO_ENCRYPTION)
    assert len(found.steps) == 1
    assert found.unreadable is not None
    assert found.unreadable.address == 0x800002A15FF0
    assert found.mapping is None


def test_a_root_outside_ram() -> None:
    found = walk(FakePhys({}), 0, 0x1000, LEVEL4, C47)
    assert found.steps == ()
    assert found.unreadable is not None


def test_a_table_that_points_to_itself() -> None:
    memory = FakePhys({0x1000: entries({0: 0x0000800000001063})})
    found = walk(memory, 0x123, 0x1000, LEVEL4, C47)
    assert [step.repeated for step in found.steps] == [False, True, True, True]
    assert found.mapping is not None  # as for the hardware
    assert found.mapping.pa == 0x1123


def test_reserved_bits_end_the_walk() -> None:
    memory = FakePhys({0x1000: entries({0: 0x00000000000010E3})})
    found = walk(memory, 0, 0x1000, LEVEL4, C47)
    assert (found.reserved, found.mapping, len(found.steps)) == (0x80, None, 1)
    narrow = measured(INIT_TOP_PGT, physical_bits=24)
    assert narrow.reserved == 0x2000000
    no_nx = measured(INIT_TOP_PGT, nx_enabled=False)
    assert (no_nx.reserved, len(no_nx.steps)) == (1 << 63, 3)


@pytest.mark.parametrize(
    ("flags", "permissions"),
    [
        ((0x7, 0x7, 0x7, 0x7), "rwx user"),
        ((0x5, 0x7, 0x7, 0x7), "r-x user"),
        ((0x7, 0x5, 0x7, 0x7), "r-x user"),
        ((0x7, 0x7, 0x7, 0x5), "r-x user"),
        ((0x3, 0x7, 0x7, 0x7), "rwx kernel"),
        ((0x7, 0x7, 0x3, 0x7), "rwx kernel"),
        ((0x8000000000000007, 0x7, 0x7, 0x7), "rw- user"),
        ((0x7, 0x7, 0x8000000000000007, 0x7), "rw- user"),
        ((0x8000000000000005, 0x3, 0x7, 0x7), "r-- kernel"),
    ],
)
def test_permissions_are_combined_along_the_walk(
    flags: tuple[int, int, int, int], permissions: str
) -> None:
    memory = FakePhys(
        {
            (level + 1) << 12: entries({0: (level + 2) << 12 | flag})
            for level, flag in enumerate(flags)
        }
    )
    mapping = walk(memory, 0, 0x1000, LEVEL4, NO_ENCRYPTION).mapping
    assert mapping is not None
    rights = mapping.permissions
    assert f"{rights} {'user' if rights.user else 'kernel'}" == permissions
    assert mapping.pa == 0x5000


def test_global_and_cache_come_from_the_leaf() -> None:
    tables = {
        0x1000: entries({0: 0x217B}),  # PCD, PWT and bit 8 in tables say nothing about the page
        0x2000: entries({0: 0x307B}),
        0x3000: entries({0: 0x407B}),
        0x4000: entries({0: 0x5063, 1: 0x61FB}),
    }
    plain = walk(FakePhys(tables), 0, 0x1000, LEVEL4, C47).mapping
    assert plain is not None
    assert (plain.global_, plain.cache_index) == (False, 0)
    special = walk(FakePhys(tables), 0x1000, 0x1000, LEVEL4, C47).mapping
    assert special is not None
    assert (special.global_, special.cache_index) == (True, 7)


def test_five_levels_and_a_1_gib_page() -> None:
    tables = {
        0x1000: entries({273: 0x0008000000002063}),
        0x2000: entries({1: 0x0008000000003063}),
        0x3000: entries({2: 0x80080000800001E3}),
    }
    va = 0xFF11000000000000 + (1 << 39) + (2 << 30) + 0x12345678
    found = walk(FakePhys(tables), va, 0x1000, LEVEL5, EncryptionBit(1 << 51))
    assert [step.entry.level.name for step in found.steps] == ["pgd", "p4d", "pud"]
    assert found.mapping is not None
    assert (found.mapping.pa, found.mapping.page_size) == (0x92345678, 1 << 30)
    assert found.mapping.encrypted

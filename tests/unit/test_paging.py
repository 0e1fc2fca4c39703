# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.core.paging import LEVEL4, LEVEL5, PagingMode

# Indexes of the kernel's own addresses: asm/pgtable_64_types.h and head_64.S (6.1).
KERNEL_TEXT = 0xFFFFFFFF81000000
DIRECT_MAP_5 = 0xFF11000000000000


@pytest.mark.parametrize(
    ("mode", "va", "indexes"),
    [
        (LEVEL4, KERNEL_TEXT, [511, 510, 8, 0]),
        (LEVEL5, KERNEL_TEXT, [511, 511, 510, 8, 0]),
        (LEVEL4, 0xFFFF888000000000, [273, 0, 0, 0]),
        # 5-level paging has its own top index, bits 56:48; peers have used that of 4 levels
        (LEVEL5, DIRECT_MAP_5, [273, 0, 0, 0, 0]),
        (LEVEL5, 0xFF11888040201000, [273, 273, 1, 1, 1]),
        (LEVEL4, 0xFFFFFFFF82A10000, [511, 510, 21, 16]),
    ],
)
def test_indexes(mode: PagingMode, va: int, indexes: list[int]) -> None:
    assert [level.index(va) for level in mode.levels] == indexes


def test_names_and_spans() -> None:
    assert [(level.name, level.apm, level.span) for level in LEVEL5.levels] == [
        ("pgd", "PML5E", 1 << 48),
        ("p4d", "PML4E", 1 << 39),
        ("pud", "PDPE", 1 << 30),
        ("pmd", "PDE", 1 << 21),
        ("pte", "PTE", 1 << 12),
    ]
    assert [level.name for level in LEVEL4.levels] == ["pgd", "pud", "pmd", "pte"]
    assert (LEVEL4.va_bits, LEVEL5.va_bits) == (48, 57)


def test_level_by_name() -> None:
    pmd = LEVEL4.level("pmd")
    assert pmd is not None
    assert pmd.shift == 21
    assert LEVEL4.level("p4d") is None

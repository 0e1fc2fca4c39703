# SPDX-License-Identifier: GPL-2.0-or-later
"""Scans of tables that are written out by hand, and of those that nobody should make."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.paging import LEVEL4, LEVEL5
from gdb_sme.core.ports import Range
from gdb_sme.core.ranges import Attributes, Conflict, MappedRange, conflicts, views
from gdb_sme.core.scan import PAYS, Scan, how_scanned, scan
from gdb_sme.core.walk import Permissions
from gdb_sme.errors import ReadError
from tests.fakes import FakePhys, MappedPhys, entries

C = 1 << 47
ENC = EncryptionBit(C)
TABLE, PAGE, NX = 0x67, 0x63, 1 << 63
KIB4, MIB2, GIB1 = 1 << 12, 1 << 21, 1 << 30


def tables(*contents: dict[int, int]) -> FakePhys:
    """Tables at 0, 0x1000, 0x2000 and so on."""
    return FakePhys({number * 0x1000: entries(each) for number, each in enumerate(contents)})


def shape(found: Scan) -> list[tuple[int, int, int]]:
    return [(each.va, each.size, each.pa) for each in found.ranges]


def test_pages_of_all_sizes_keep_apart_and_neighbours_merge() -> None:
    memory = tables(
        {0: 0x1000 | TABLE},
        {0: 0x2000 | TABLE, 1: 0x40000000 | PAGE | 0x80, 2: 0x80000000 | PAGE | 0x80},
        {0: 0x3000 | TABLE, 1: 0x200000 | PAGE | 0x80},
        {510: 0x1FE000 | PAGE, 511: 0x1FF000 | PAGE},
    )
    found = scan(memory, 0, LEVEL4, NO_ENCRYPTION)
    assert shape(found) == [
        (0x1FE000, 2 * KIB4, 0x1FE000),
        (MIB2, MIB2, MIB2),
        (GIB1, 2 * GIB1, GIB1),
    ]
    assert [each.attributes.page_size for each in found.ranges] == [KIB4, MIB2, GIB1]
    assert [use.level for use in found.tables] == ["pgd", "pud", "pmd", "pte"]
    assert found.bytes_read == 4 * 4096
    assert found.stopped_at is None


@pytest.mark.parametrize("changed", [C, 2, 4, NX, 8, 16, 0x80, 0x100])
def test_what_makes_another_mapping_makes_another_range(changed: int) -> None:
    last = {n: n << 12 | PAGE ^ (changed if n >= 300 else 0) for n in range(512)}
    memory = tables({0: 0x1000 | TABLE}, {0: 0x2000 | TABLE}, {0: 0x3000 | TABLE}, last)
    found = scan(memory, 0, LEVEL4, ENC)
    assert [each.page_count for each in found.ranges] == [300, 212]
    assert found.ranges[0].attributes != found.ranges[1].attributes


@pytest.mark.parametrize("changed", [0x20, 0x40, 0x200, 0x400, 0x800, 1 << 52, 1 << 58, 1 << 60])
def test_accessed_dirty_and_what_is_not_the_hardwares_do_not(changed: int) -> None:
    last = {n: n << 12 | PAGE ^ (changed if n % 3 else 0) for n in range(512)}
    memory = tables({0: 0x1000 | TABLE}, {0: 0x2000 | TABLE}, {0: 0x3000 | TABLE}, last)
    assert shape(scan(memory, 0, LEVEL4, ENC)) == [(0, MIB2, 0)]


def test_rights_of_upper_levels_count_and_an_alias_has_its_own() -> None:
    memory = tables(
        {0: 0x1000 | TABLE, 1: 0x1000 | 0x61 | NX, 256: 0x1000 | TABLE | C},
        {0: 0x2000 | TABLE},
        {0: 0x3000 | TABLE},
        {0: 0x9000 | 0x67 | C},
    )
    found = scan(memory, 0, LEVEL4, ENC)
    assert [each.va for each in found.ranges] == [0, 1 << 39, 0xFFFF800000000000]
    rights = [each.attributes.permissions for each in found.ranges]
    whole = Permissions(write=True, user=True, execute=True)
    assert rights == [whole, Permissions(write=False, user=False, execute=False), whole]
    assert found.tables_read == 4
    assert sorted(memory.reads) == sorted(set(memory.reads))
    assert [(use.va, use.encrypted) for use in found.tables if use.pa == 0x1000] == [
        (0, False),
        (1 << 39, False),
        (0xFFFF800000000000, True),
    ]


def test_a_sum_that_carries_into_the_c_bit_is_another_range() -> None:
    first = (1 << 47) - 2 * KIB4
    last = {n: first + n * KIB4 | PAGE for n in range(4)}
    memory = tables({0: 0x1000 | TABLE}, {0: 0x2000 | TABLE}, {0: 0x3000 | TABLE}, last)
    found = scan(memory, 0, LEVEL4, ENC)
    assert [(each.pa, each.attributes.encrypted) for each in found.ranges] == [
        (first, False),
        (0, True),
    ]


def test_one_page_all_over_is_one_range_however_large() -> None:
    # KASAN's early shadow: every entry of every level is the same (mm/kasan/init.c).
    memory = tables(
        {300: 0x1000 | TABLE, 301: 0x1000 | TABLE},
        dict.fromkeys(range(512), 0x2000 | TABLE),
        dict.fromkeys(range(512), 0x3000 | TABLE),
        dict.fromkeys(range(512), 0x7000 | PAGE | C),
    )
    found = scan(memory, 0, LEVEL4, ENC)
    assert shape(found) == [(0xFFFF960000000000, 2 << 39, 0x7000)]
    only = found.ranges[0]
    assert only.repeated
    assert only.physical == Range(0x7000, 0x8000)
    assert only.pa_of(only.va + 5 * KIB4 + 3) == 0x7003
    assert [use.places for use in found.tables] == [1, 2, 512, 512]


def test_a_table_over_and_over_that_maps_nothing_costs_nothing() -> None:
    every = range(512)
    memory = tables(
        dict.fromkeys(every, 0x1000 | TABLE),
        dict.fromkeys(every, 0x2000 | TABLE),
        dict.fromkeys(every, 0x3000 | TABLE),
        {},
    )
    found = scan(memory, 0, LEVEL4, ENC)
    assert found.ranges == ()
    assert len(found.tables) < 10
    assert found.tables[-1].empty


def test_a_table_that_points_to_itself_ends_and_is_told() -> None:
    memory = tables({5: 0 | TABLE})
    found = scan(memory, 0, LEVEL4, NO_ENCRYPTION)
    # Through itself the pgd is the pud, the pmd and the pte table too: one page is mapped.
    assert shape(found) == [(sum(5 << shift for shift in (12, 21, 30, 39)), KIB4, 0)]
    assert [(each.kind, each.entry_pa) for each in found.troubles] == [("loop", 40)]
    assert "below itself" in found.troubles[0].detail


def test_a_root_full_of_itself_ends() -> None:
    memory = tables(dict.fromkeys(range(512), TABLE))
    found = scan(memory, 0, LEVEL5, NO_ENCRYPTION)
    assert [each.kind for each in found.troubles] == ["loop", "loop"]  # one for each half
    assert sum(each.size for each in found.ranges) == 1 << 57


def test_what_cannot_be_followed_is_told_where_it_is() -> None:
    memory = tables(
        {0: 0x1000 | TABLE, 1: 0x999000 | TABLE, 2: 0x1000 | TABLE | 0x80},
        {0: 0x999000 | TABLE, 3: 0x40001000 | PAGE | 0x80, 4: 0x40004000 | PAGE | 0x80},
    )
    found = scan(memory, 0, LEVEL4, NO_ENCRYPTION)
    told = [(each.kind, each.va, each.size, each.level, each.entry_pa) for each in found.troubles]
    assert told == [
        ("unreadable", 0, GIB1, "pud", 0x1000),
        ("reserved", 4 * GIB1, GIB1, "pud", 0x1020),
        ("unreadable", 1 << 39, 1 << 39, "pgd", 8),
        ("reserved", 2 << 39, 1 << 39, "pgd", 16),
    ]
    assert found.troubles[3].raw == 0x1000 | TABLE | 0x80
    assert "0x80" in found.troubles[3].detail
    # Bit 12 of a 1 GiB page is PAT, no address and not reserved.
    assert shape(found) == [(3 * GIB1, GIB1, GIB1)]
    assert found.ranges[0].attributes.cache_index == 4


def test_a_root_outside_memory_is_told() -> None:
    found = scan(tables({}), 0x5000, LEVEL4, NO_ENCRYPTION)
    assert found.ranges == found.tables == ()
    assert [(each.kind, each.level) for each in found.troubles] == [("unreadable", "root")]


def test_reserved_bits_depend_on_the_processor() -> None:
    memory = tables(
        {0: 0x1000 | TABLE},
        {0: 0x2000 | TABLE},
        {0: 0x3000 | TABLE},
        {0: 0x9000 | PAGE, 1: 1 << 40 | PAGE, 2: 0x5000 | PAGE | NX},
    )
    found = scan(memory, 0, LEVEL4, NO_ENCRYPTION, physical_bits=40, nx_enabled=False)
    assert [each.raw for each in found.troubles] == [1 << 40 | PAGE, 0x5000 | PAGE | NX]
    assert shape(found) == [(0, KIB4, 0x9000)]


class Everywhere:
    """Memory in which every page is a table of 512 random entries."""

    name = "random"
    ram = (Range(0, 1 << 52),)

    def __init__(self, make: Callable[[random.Random], int]) -> None:
        self._make = make
        self.reads = 0

    def read(self, pa: int, length: int) -> bytes:
        self.reads += 1
        rng = random.Random(pa)
        return b"".join(self._make(rng).to_bytes(8, "little") for _ in range(length // 8))

    batch = FakePhys.batch


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.getrandbits(64),
        lambda rng: rng.getrandbits(64) & ~0x80 | 1,
        lambda rng: rng.getrandbits(8) << 12 | 0x67,
    ],
    ids=["anything", "present", "tables all the way down"],
)
def test_random_entries_end_at_the_limit_and_say_where(
    make: Callable[[random.Random], int],
) -> None:
    limit = 20_000
    memory = Everywhere(make)
    found = scan(memory, 0, LEVEL4, ENC, limit=limit)
    assert found.stopped_at is not None
    assert len(found.ranges) + len(found.tables) + len(found.troubles) <= limit + 3 * 512
    assert memory.reads <= limit + 512


def test_a_million_random_entries() -> None:
    rng = random.Random(1)
    pages = {number << 12: rng.randbytes(4096) for number in range(2048)}
    memory = FakePhys(dict.fromkeys([], b""))
    memory.read = lambda pa, length: _page(pages, pa, length)  # type: ignore[method-assign]
    found = scan(memory, 0, LEVEL5, ENC)
    assert found.troubles
    assert found.stopped_at is None


def _page(pages: dict[int, bytes], pa: int, length: int) -> bytes:
    if pa not in pages:
        raise ReadError(pa, length, "outside guest RAM")
    return pages[pa]


def test_progress_is_told_in_address_order() -> None:
    memory = tables({0: 0x1000 | TABLE, 256: 0x1000 | TABLE}, {7: 0x2000 | TABLE}, {0: PAGE | 0x80})
    told: list[int] = []
    scan(memory, 0, LEVEL4, NO_ENCRYPTION, progress=told.append)
    assert told == sorted(told)
    assert 0xFFFF8001C0000000 in told


def mapped(va: int, pa: int, count: int, *, encrypted: bool) -> MappedRange:
    how = Attributes(KIB4, Permissions(True, False, False), encrypted, False, 0)
    return MappedRange(va, count * KIB4, pa, how)


def test_views_and_conflicts() -> None:
    one = mapped(0x10000, 0x1000, 8, encrypted=True)
    two = mapped(0x40000, 0x3000, 2, encrypted=False)
    three = mapped(0x80000, 0x9000, 1, encrypted=False)
    again = mapped(0x90000, 0x3000, 1, encrypted=False)
    known = (one, two, three, again)
    assert views(known, Range(0x3000, 0x3001)) == (one, two, again)
    assert views(known, Range(0x9000, 0xA000)) == (three,)
    assert conflicts(known) == (
        Conflict(Range(0x3000, 0x4000), (one,), (two, again)),
        Conflict(Range(0x4000, 0x5000), (one,), (two,)),
    )
    assert one.va_of(0x3008) == 0x12008
    assert conflicts((one, three)) == ()


def large(count: int, places: int = 1) -> MappedPhys:
    """``count`` (512 at most) tables of PTEs whose pages follow one another, and what is above."""
    root = entries(dict.fromkeys(range(places), 4096 | TABLE))
    blocks = {0: root, 0x1000: entries({0: 0x2000 | TABLE})}
    blocks[0x2000] = entries({n: (3 + n) << 12 | TABLE for n in range(count)})
    for n in range(count):
        blocks[(3 + n) << 12] = entries({i: (n * 512 + i) << 12 | PAGE for i in range(512)})
    return MappedPhys({0: b"".join(blocks.values())})


def test_numpy_looks_at_mapped_tables_without_reading_them() -> None:
    memory = large(40)
    found = scan(memory, 0, LEVEL4, NO_ENCRYPTION, in_bulk=True)
    assert shape(found) == [(0, 40 * MIB2, 0)]
    assert memory.reads == [(0, 4096)]
    assert found.tables_read == len(found.tables) == 43
    assert scan(memory, 0, LEVEL4, NO_ENCRYPTION, in_bulk=False) == found
    assert len(memory.reads) == 1 + 43
    assert scan(memory, 0, LEVEL4, NO_ENCRYPTION, in_bulk=True, with_tables=False).tables == ()


def test_pages_that_run_into_the_c_bit_from_table_to_table_are_two_ranges() -> None:
    count = 32
    first = C - count // 2 * MIB2
    blocks = [entries({0: 0x1000 | TABLE}), entries({0: 0x2000 | TABLE})]
    blocks.append(entries({n: (3 + n) << 12 | TABLE for n in range(count)}))
    for n in range(count):
        blocks.append(entries({i: first + (n * 512 + i) * KIB4 | PAGE for i in range(512)}))
    memory = MappedPhys({0: b"".join(blocks)})
    found = scan(memory, 0, LEVEL4, ENC, in_bulk=True)
    half = count // 2 * MIB2
    assert shape(found) == [(0, half, first), (half, half, 0)]
    assert [each.attributes.encrypted for each in found.ranges] == [False, True]
    assert scan(memory, 0, LEVEL4, ENC, in_bulk=False) == found


def test_without_numpy_scans_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = large(40)
    assert how_scanned(memory) == f"with NumPy from {PAYS} tables of PTEs on"
    found = scan(memory, 0, LEVEL4, NO_ENCRYPTION, in_bulk=True)
    for module in [m for m in sys.modules if m.split(".")[0] == "numpy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "gdb_sme.core.bulk")
    monkeypatch.setitem(sys.modules, "numpy", None)  # as when it is not installed
    assert how_scanned(memory) == "one table after the other: no NumPy (Debian: python3-numpy)"
    memory.reads.clear()
    assert scan(memory, 0, LEVEL4, NO_ENCRYPTION, in_bulk=True) == found
    assert len(memory.reads) == 43
    assert how_scanned(FakePhys({})) == "one table after the other: memory is not mapped"


def test_numpy_is_imported_by_large_scans_alone() -> None:
    code = (
        "import sys; from tests.unit.test_scan import *\n"
        "for places in 1, 2:\n"
        "    scan(large(512, places), 0, LEVEL4, NO_ENCRYPTION)\n"
        "    print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"

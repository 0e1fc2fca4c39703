# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme dump` and `sme find` as text and JSON, and their filters, over a kernel of plain data."""

from __future__ import annotations

import json

import pytest

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ranges import MappedRange
from gdb_sme.errors import UsageError
from gdb_sme.linux.dump import Dump, Filter, dump, scan_root
from gdb_sme.linux.find import Finding, Found, find_conflicts, find_physical, page_of, search
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.translate import Root
from gdb_sme.render import dump as dump_view
from gdb_sme.render import find as find_view
from tests.fakes import FakePhys, FakeSymbols, entries

C = 1 << 47
TABLE, NX = 0x67, 1 << 63
CPU = CpuState(index=0, rip=0xFFFFFFFF81000000, cr0=0x80050033, cr4=0x20, efer=0xD01, cr3=C)
ROOT = Root(0, C, True, "CR3 of CPU 0", "init_top_pgt")
DIRECT = 0xFFFF888000000000
#: Two pages with the C-bit, one of them again in vmalloc's region without it, and user space.
MEMORY = {
    0x0000: entries({0: 0x1000 | TABLE | C, 273: 0x2000 | TABLE | C, 402: 0x3000 | TABLE}),
    0x1000: entries({0: 0x4000 | TABLE | C}),
    0x2000: entries({0: 0x5000 | TABLE | C}),
    0x3000: entries({0: 0x6000 | TABLE | C}),
    0x4000: entries({0: 0x7000 | TABLE | C}),
    0x5000: entries({0: 0x8000 | TABLE | C, 1: 0x200000 | 0xE3 | C}),
    0x6000: entries({0: 0x9000 | TABLE | C}),
    0x7000: entries({1: 0xB000 | 0x65 | C, 2: 0xB000 | 0x65 | C, 3: 0xC000 | 0x67 | C}),
    0x8000: entries({0xA: 0xA000 | 0x163 | C | NX, 0xB: 0xB000 | 0x163 | C | NX}),
    0x9000: entries({0: 0xA000 | 0x17B | NX, 1: 0x800000 | TABLE}),
    0xA000: b"needle".ljust(4096, b"\0"),
    0xB000: bytes(4090) + b"needle",
}


def kernel() -> Kernel:
    whole = b"".join(MEMORY[pa] for pa in sorted(MEMORY))
    return Kernel(FakePhys({0: whole}), FakeSymbols({}), (CPU,), c_bit=47)


def dumped(only: Filter | None = None, *, tables: bool = False) -> Dump:
    known = kernel()
    found = scan_root(known, CPU, ROOT, with_tables=tables)
    return dump(known, CPU, ROOT, found, only or Filter(), with_tables=tables)


def test_a_dump_shows_every_range_in_columns() -> None:
    assert str(dump_view.text(dumped())).split("\n") == [
        "virtual             to                  physical             pages  of     rights      "
        "type        G  C  region",
        "0x0000000000001000  0x0000000000002fff  0x0000b000 repeated      2  4 KiB  r-x user    "
        "write-back  -  C  user space",
        "0x0000000000003000  0x0000000000003fff  0x0000c000               1  4 KiB  rwx user    "
        "write-back  -  C  user space",
        "0xffff88800000a000  0xffff88800000bfff  0x0000a000               2  4 KiB  rw- kernel  "
        "write-back  G  C  direct map",
        "0xffff888000200000  0xffff8880003fffff  0x00200000               1  2 MiB  rwx kernel  "
        "write-back  -  C  direct map",
        "0xffffc90000000000  0xffffc90000000fff  0x0000a000               1  4 KiB  rw- kernel  "
        "uncached    G  -  vmalloc",
        "0xffffc90000001000  0xffffc90000001fff  0x00800000               1  4 KiB  rwx user    "
        "write-back  -  -  vmalloc",
        "6 ranges, 8 pages (2.0 MiB): 6 encrypted, 2 not; 10 table pages read",
    ]


def starts(found: Dump) -> list[int]:
    return [each.va for each, _ in found.ranges]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (Filter(encrypted=False), [0xFFFFC90000000000, 0xFFFFC90000001000]),
        (Filter(encrypted=True, page_size=4096), [0x1000, 0x3000, DIRECT + 0xA000]),
        (Filter(write_execute=True), [0x3000, DIRECT + 0x200000, 0xFFFFC90000001000]),
        (Filter(user=True, region="vmalloc"), [0xFFFFC90000001000]),
        (Filter(level="pmd"), [DIRECT + 0x200000]),
        (Filter(region="DIRECT-map"), [DIRECT + 0xA000, DIRECT + 0x200000]),
        (Filter(level="pgd"), []),
    ],
)
def test_filters(only: Filter, expected: list[int]) -> None:
    assert starts(dumped(only)) == expected


def test_a_region_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="no region 'heap'; the regions are user-space, "):
        dumped(Filter(region="heap"))


def test_table_pages_and_the_bit_on_each() -> None:
    found = dumped(tables=True)
    text = str(dump_view.text(found)).split("\n")
    assert text[1].split() == ["0x0000000000000000", "pgd", "0x00000000", "root", "C", "user",
                               "space"]  # fmt: skip
    assert "0xffffc90000000000  pud       0x00003000  0x00000c90  0x0000000000003067  -" in text[8]
    assert text[-1] == "10 tables: 9 encrypted, 1 not; 0 without an entry"
    clear = dumped(Filter(encrypted=False), tables=True)
    assert clear.tables is not None
    assert [use.pa for use, _ in clear.tables] == [0x3000]
    levels = dumped(Filter(level="pmd", region="direct-map"), tables=True)
    assert levels.tables is not None
    assert [use.pa for use, _ in levels.tables] == [0x5000]


def test_json_has_every_range() -> None:
    payload = json.loads(json.dumps(dump_view.payload(dumped())))
    assert payload["ranges"][2] == {
        "start": "0xffff88800000a000",
        "end": "0xffff88800000c000",
        "pa": "0xa000",
        "encrypted": True,
        "page_size": 4096,
        "permissions": {"write": True, "user": False, "execute": False},
        "memory_type": "write-back",
        "global": True,
        "repeated": False,
        "region": "direct map",
        "symbol": None,
    }
    assert payload["ranges"][0]["repeated"] is True
    assert payload["troubles"] == []
    tables = json.loads(json.dumps(dump_view.payload(dumped(tables=True))))["tables"]
    assert tables[0]["entry_pa"] is None
    assert tables[1]["raw"] == "0x0000800000001067"


def test_troubles_are_told_above_the_sums() -> None:
    known = kernel()
    found = scan_root(known, CPU, Root(0xA000, 0xA000, False, "--root 0xa000"))
    text = str(dump_view.text(dump(known, CPU, ROOT, found, Filter())))
    assert text.endswith("0 ranges, 0 pages (0 KiB): 0 encrypted, 0 not; 1 table page read")
    bad = scan_root(known, CPU, Root(1 << 40, 0, False, "--root"))
    text = str(dump_view.text(dump(known, CPU, ROOT, bad, Filter())))
    assert text.startswith("cannot read the root at 0x10000000000: outside guest RAM")


def found_at(pa: int, size: int = 1) -> Found:
    known = kernel()
    return find_physical(known, CPU, scan_root(known, CPU, ROOT), [page_of(pa, size)])[0]


def test_every_view_of_a_page_and_a_conflict_stands_out() -> None:
    found = found_at(0xA123)
    assert [view.va for view in found.views] == [DIRECT + 0xA123, 0xFFFFC90000000123]
    assert [view.encrypted for view in found.views] == [True, False]
    assert found.conflict
    assert found_at(0xB000, 4096).conflict is False
    assert found_at(0x100000).views == ()
    assert page_of(0xAFFC, 100).end == 0xB000


def finding(*found: Found) -> Finding:
    known = kernel()
    return Finding("physical 0xa123", ROOT, scan_root(known, CPU, ROOT), found, "C")


def test_what_was_found_as_text_and_json() -> None:
    text = str(find_view.text(finding(found_at(0xA123), found_at(0x100000)))).split("\n")
    assert text[0] == "0x0000a123  mapped 2 times"
    assert text[2].split() == ["0xffffc90000000123", "4", "KiB", "rw-", "kernel", "uncached", "-",
                               "vmalloc", *text[2].split()[8:]]  # fmt: skip
    assert "0x00100000  not mapped" in text
    payload = json.loads(json.dumps(find_view.payload(finding(found_at(0xA123)))))
    assert payload["found"][0]["conflict"] is True
    assert payload["found"][0]["views"][0]["va"] == "0xffff88800000a123"
    assert payload["found"][0]["views"][1]["encrypted"] is False


def test_all_conflicts() -> None:
    known = kernel()
    found = find_conflicts(known, CPU, scan_root(known, CPU, ROOT))
    assert [(each.physical.start, each.physical.end) for each in found] == [(0xA000, 0xB000)]


def test_bytes_are_found_also_across_the_parts_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert search(kernel(), b"needle", 9) == (0xA000, 0xBFFA)
    assert search(kernel(), b"needle", 1) == (0xA000,)
    assert search(kernel(), b"haystack", 9) == ()
    # Parts of 4091 bytes cut the second one in two.
    monkeypatch.setattr("gdb_sme.linux.find._CHUNK", 0xBFFD // 13)
    assert search(kernel(), b"needle", 9) == (0xA000, 0xBFFA)
    overlapping = Kernel(FakePhys({0: b"aaaa"}), FakeSymbols({}), (CPU,), c_bit=47)
    assert search(overlapping, b"aa", 9) == (0, 1, 2)


def test_a_range_knows_its_own_addresses() -> None:
    each = next(each for each, _ in dumped().ranges if each.repeated)
    assert isinstance(each, MappedRange)
    assert list(each.pages()) == [(0x1000, 0xB000), (0x2000, 0xB000)]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots as files, and the differences of two."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gdb_sme.core import entry as bits
from gdb_sme.core.ranges import Attributes, MappedRange
from gdb_sme.core.scan import TableUse
from gdb_sme.core.walk import Permissions
from gdb_sme.errors import UsageError
from gdb_sme.linux.diff import Kind, diff
from gdb_sme.linux.layout import Region
from gdb_sme.linux.snapshot import FORMAT, Snapshot, banner, dumps, load, loads, save, take
from gdb_sme.linux.translate import root_of_cpu
from gdb_sme.render import diff as view
from tests.unit.fake_kernel import DIRECT, LARGE, PAGE, USER, VMALLOC, C, Machine


def snap(machine: Machine, name: str = "a") -> Snapshot:
    kernel = machine.kernel()
    return take(name, kernel, kernel.cpus[0], root_of_cpu(kernel, kernel.cpus[0]))


def test_a_snapshot_survives_its_file_unchanged(tmp_path: Path) -> None:
    taken = snap(Machine())
    assert taken.kernel == "Linux version 6.1.0-test"
    assert taken.region(DIRECT) == "direct map"
    assert taken.region(0x8000000000000000) is None
    save(taken, tmp_path / "a")
    assert load(tmp_path / "a") == taken
    assert dumps(load(tmp_path / "a")) == (tmp_path / "a").read_bytes()


def test_without_its_symbol_there_is_no_banner() -> None:
    machine = Machine()
    machine.symbols.remove("linux_banner")
    assert banner(machine.kernel()) == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no gzip",
        lambda data: data[:-20],
        lambda data: data[:40] + bytes(8) + data[48:],
        lambda data: gzip.compress(b"{}"),
        lambda data: gzip.compress(b"[1]"),
        lambda data: gzip.compress(json.dumps({"format": FORMAT}).encode()),
        lambda data: _edited(data, "ranges", [["0x0", "0x1000", "0x0", 99]]),
        lambda data: _edited(data, "mask", "word"),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UsageError, match=r"^some/file: no snapshot, or damaged"):
        loads(damage(dumps(snap(Machine()))), "some/file")


def _edited(data: bytes, member: str, value: object) -> bytes:
    document = json.loads(gzip.decompress(data))
    document[member] = value
    return gzip.compress(json.dumps(document).encode())


def test_another_version_is_named() -> None:
    data = _edited(dumps(snap(Machine())), "format", "gdb_sme/snapshot/9")
    with pytest.raises(UsageError, match="'gdb_sme/snapshot/9' is not the format"):
        loads(data, "f")


def test_files_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*: no such file"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match=r"cannot write .*: is a directory"):
        save(snap(Machine()), tmp_path)


def test_no_difference() -> None:
    machine = Machine()
    found = diff(snap(machine), snap(machine, "b"))
    assert found.changes == ()
    assert found.tables == ()
    assert "no difference" in str(view.text(found))


def test_pages_decrypted_one_by_one_are_one_change() -> None:
    machine = Machine()
    before = snap(machine)
    for number in range(4):
        machine.flip(DIRECT + 0x604000 + number * PAGE, C)
    found = diff(before, snap(machine, "b"))
    (change,) = found.changes
    assert change.kinds == (Kind.C_BIT,)
    assert (change.va, change.size) == (DIRECT + 0x604000, 4 * PAGE)
    assert "c-bit C -> -" in str(view.text(found))
    assert "decrypted 16 KiB" in str(view.text(found))


def test_a_split_page_with_one_decrypted() -> None:
    machine = Machine()
    before = snap(machine)
    machine.split(DIRECT + 0xA00000, 0xA00000)
    machine.flip(DIRECT + 0xA01000, C)
    found = diff(before, snap(machine, "b"))
    assert [(c.kinds, c.size) for c in found.changes] == [
        ((Kind.PAGE_SIZE,), PAGE),
        ((Kind.C_BIT, Kind.PAGE_SIZE), PAGE),
        ((Kind.PAGE_SIZE,), LARGE - 2 * PAGE),
    ]
    assert [(t.level, t.before) for t in found.tables] == [("pte", None)]
    only = diff(before, snap(machine, "b"), frozenset({Kind.C_BIT}))
    assert [c.va for c in only.changes] == [DIRECT + 0xA01000]
    assert found.bytes_of(Kind.PAGE_SIZE) == LARGE


def test_every_kind_of_change_is_told_apart() -> None:
    machine = Machine()
    before = snap(machine)
    machine.flip(VMALLOC + 0x8000, bits.RW)
    machine.flip(VMALLOC + 0x9000, bits.PWT)
    machine.flip(VMALLOC + 0xA000, bits.GLOBAL)
    machine.put(machine.entry(VMALLOC + 0xB000), 0)
    machine.map(VMALLOC + 0xC000, 0x1A00000, PAGE)
    machine.flip(USER, 0x100000)
    found = diff(before, snap(machine, "b"))
    assert [(c.va, c.kinds) for c in found.changes] == [
        (USER, (Kind.MOVED,)),
        (VMALLOC + 0x8000, (Kind.PERMISSIONS,)),
        (VMALLOC + 0x9000, (Kind.MEMORY_TYPE,)),
        (VMALLOC + 0xA000, (Kind.GLOBAL,)),
        (VMALLOC + 0xB000, (Kind.UNMAPPED,)),
        (VMALLOC + 0xC000, (Kind.MAPPED,)),
    ]
    shown = str(view.text(found))
    for words in (
        "moved 0x01800000 -> 0x01900000",
        "permissions rw- kernel -> r-- kernel",
        "memory-type write-back -> write-combining",
        "global clear -> set",
        "unmapped: C rw- kernel 4 KiB",
        "mapped: C rw- kernel 4 KiB",
    ):
        assert words in shown
    back = diff(snap(machine), before)
    assert Kind.MAPPED in back.changes[4].kinds


def test_a_table_whose_c_bit_changed_is_named() -> None:
    machine = Machine()
    before = snap(machine)
    machine.flip(DIRECT, C, 2)
    found = diff(before, snap(machine, "b"))
    assert not found.changes
    (change,) = found.tables
    assert change.c_bit
    assert f"the pmd table: c-bit C -> -, entry at {machine.entry(DIRECT, 2):#010x}" in str(
        view.text(found)
    )


def _mapped(va: int, size: int, pa: int, *, repeated: bool = False) -> MappedRange:
    return MappedRange(
        va, size, pa, Attributes(PAGE, Permissions(True, False, False), True, False, 0, repeated)
    )


def _of(*ranges: MappedRange) -> Snapshot:
    return Snapshot("x", "", "AMD SME", C, "", "", (Region("r", 0, 1 << 20),), ranges, ())


def test_ranges_that_begin_and_end_at_different_places() -> None:
    before = _of(_mapped(0, 4 * PAGE, 0), _mapped(8 * PAGE, PAGE, 0x8000))
    after = _of(_mapped(2 * PAGE, 4 * PAGE, 2 * PAGE), _mapped(8 * PAGE, 2 * PAGE, 0x8000))
    found = diff(before, after)
    assert [(c.va, c.end, c.kinds[0]) for c in found.changes] == [
        (0, 2 * PAGE, Kind.UNMAPPED),
        (4 * PAGE, 6 * PAGE, Kind.MAPPED),
        (9 * PAGE, 10 * PAGE, Kind.MAPPED),
    ]


def test_a_repeated_page_is_compared_as_what_it_maps() -> None:
    before = _of(_mapped(0, 8 * PAGE, 0x5000, repeated=True))
    same = _of(
        _mapped(0, 4 * PAGE, 0x5000, repeated=True),
        _mapped(4 * PAGE, 4 * PAGE, 0x5000, repeated=True),
    )
    assert diff(before, same).changes == ()
    assert diff(same, before).changes == ()
    moved = diff(before, _of(_mapped(0, 8 * PAGE, 0x6000, repeated=True)))
    (change,) = moved.changes
    assert change.size == 8 * PAGE


def test_the_json_forms() -> None:
    machine = Machine()
    before = snap(machine)
    machine.flip(DIRECT + 0xA00000, C, 3)
    machine.map(VMALLOC + 0x400000, 0x1A00000, PAGE)
    payload = json.loads(json.dumps(view.payload(diff(before, snap(machine, "b")))))
    flipped, mapped = payload["changes"]
    assert flipped["kinds"] == ["c-bit"]
    assert flipped["va"] == "0xffff888000a00000"
    assert flipped["before"]["encrypted"] is True
    assert flipped["after"]["encrypted"] is False
    assert flipped["region"] == "direct map"
    assert mapped["before"] is None
    assert payload["tables"][0]["before"] is None
    assert payload["before"]["name"] == "a"
    heads = json.loads(json.dumps(view.heads_payload((before,))))["snapshots"]
    assert heads[0]["kernel"] == "Linux version 6.1.0-test"


def test_the_list_of_snapshots() -> None:
    assert "no snapshots" in str(view.head(()))
    line = str(view.head((replace(snap(Machine()), kernel=""),)))
    assert line.startswith("a  ")
    assert "AMD SME" in line


def test_table_uses_keep_their_types() -> None:
    (back,) = loads(
        dumps(replace(_of(), tables=(TableUse(4096, "pgd", 0, None, 4096, None, 1, False),))), "f"
    ).tables
    assert back == TableUse(4096, "pgd", 0, None, 4096, None, 1, False)

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme dump` and `sme find` on real kernels, against QEMU's ``info tlb`` and against raw tables.

SME_TEST_PRODUCT=1 in the environment boots the full product of kernels, encryption, levels, C-bits,
RAM sizes and stops instead of a covering choice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions
from tests.qemu.oracle import TLB_ADDRESS, Ram, info_tlb, walk

CHOICE = [
    # kernel, encryption, C-bit, 5 levels, RAM, stop
    ("debian-6.1", "none", 47, False, "512M", "shell"),
    ("debian-6.1", "sme", 47, False, "512M", "shell"),
    ("debian-6.1", "sme", 51, True, "4G", "shell"),
    ("debian-6.1", "sev", 51, False, "512M", "start_kernel"),
    ("debian-6.12", "none", 47, True, "4G", "start_kernel"),
    ("debian-6.12", "sme", 47, False, "4G", "shell"),
    ("debian-6.12", "sev", 47, True, "512M", "shell"),
    ("debian-6.12", "sme", 51, False, "512M", "start_kernel"),
]
PRODUCT = list(
    itertools.product(
        ("debian-6.1", "debian-6.12"),
        ("none", "sme", "sev"),
        (47, 51),
        (False, True),
        ("512M", "4G"),
        ("start_kernel", "shell"),
    )
)
CASES = PRODUCT if os.environ.get("SME_TEST_PRODUCT") else CHOICE

PAT = (
    "write-back", "write-combining", "uncached-minus", "uncached",
    "write-back", "write-protected", "uncached-minus", "write-through",
)  # fmt: skip


def answer(session: Session, command: str) -> dict[str, Any]:
    output = session.gdb.execute(f"{command} --json")
    found: dict[str, Any] = json.loads(output[output.index("{") :])  # progress may stand before
    return found


def physical_mode(session: Session) -> str:
    """QEMU's answer when asked for its physical mode."""
    return session.gdb.execute("maint packet qqemu.PhyMemMode").split()[-1]


def pages(ranges: list[dict[str, Any]]) -> list[tuple[int, int, dict[str, Any]]]:
    """Every page of the ranges: virtual, physical, and the range."""
    found = []
    for each in ranges:
        start, end, pa = (int(each[key], 16) for key in ("start", "end", "pa"))
        step = each["page_size"]
        for offset in range(0, end - start, step):
            found.append((start + offset, pa + (0 if each["repeated"] else offset), each))
    return found


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request: pytest.FixtureRequest, booted: SharedSessions) -> tuple[Session, int, int]:
    """A session, the mask of its C-bit, and the number of levels."""
    image, encryption, c_bit, la57, memory, until = request.param
    session = booted(
        image, encryption, until=until, memory=memory, c_bit=c_bit, la57=la57
    )  # fmt: skip
    return session, 0 if encryption == "none" else 1 << c_bit, 5 if la57 else 4


def test_a_dump_is_what_qemu_and_the_raw_tables_say(case: tuple[Session, int, int]) -> None:
    session, c_mask, levels = case
    dumped = answer(session, "sme dump")
    assert dumped["troubles"] == []
    assert dumped["stopped_at"] is None
    shown = pages(dumped["ranges"])
    assert "guest RAM mapped" in session.gdb.execute("sme status")

    tlb = info_tlb(session)
    assert len(tlb) > 10
    mine = []
    for va, pa, each in shown:
        raw_pa = pa | (c_mask if each["encrypted"] else 0)
        mine.append((va, raw_pa & TLB_ADDRESS, each["global"], each["page_size"] > 4096))
    assert mine == [(va, pa, "G" in flags, "P" in flags) for va, pa, flags in tlb]

    tables = answer(session, "sme dump --tables")
    session.gdb.execute("python import numpy")  # which scans use from then on
    assert answer(session, "sme dump") == dumped
    assert answer(session, "sme dump --tables") == tables

    root = session.gdb.evaluate("(unsigned long)$cr3") & 0x000FFFFFFFFFF000 & ~c_mask
    raw = list(walk(Ram(session), root, levels, c_mask))
    assert [page.tlb() for page in raw] == tlb
    for page, (va, pa, each) in zip(raw, shown, strict=True):
        rights = each["permissions"]
        pat = page.raw >> (7 if page.size == 4096 else 12) & 1
        assert (page.va, page.pa(c_mask), page.size) == (va, pa, each["page_size"])
        assert (page.write, page.user, page.execute) == (
            rights["write"], rights["user"], rights["execute"],
        )  # fmt: skip
        assert each["encrypted"] == bool(page.raw & c_mask)
        assert each["memory_type"] == PAT[pat << 2 | page.raw >> 3 & 3]


READING = (
    "sme status",
    "sme pte $rip",
    "sme cr3",
    "sme dump",
    "sme dump --tables",
    "sme dump --user 1",
    "sme find --conflicts",
    "sme find --symbol init_top_pgt",
    'sme find --bytes "Linux version"',
    "sme audit",
    "sme snapshot now",
    "sme diff now",
)


def test_reading_commands_leave_the_guest_as_it_was(booted: SharedSessions, tmp_path: Path) -> None:
    session = booted("debian-6.1", "sme", until="shell")

    def state() -> tuple[str, str]:
        digest = hashlib.blake2b()
        for offset in range(0, session.machine.config.memory, 1 << 24):
            digest.update(os.pread(session.machine.ram_fd, 1 << 24, offset))
        return digest.hexdigest(), session.gdb.execute("monitor info registers -a")

    before = state()
    for command in (*READING, f"sme report {tmp_path}/report.html"):
        session.gdb.execute(command)
        assert physical_mode(session) == '"0"'
        assert state() == before, command


def test_both_readers_give_the_same(booted: SharedSessions) -> None:
    session = booted("debian-6.12", "sme", until="shell", memory="4G")
    code = (
        "from gdb_sme.core.scan import scan; from gdb_sme.target.session import SESSIONS; "
        "from gdb_sme.linux.translate import root_of_cpu; s = SESSIONS.current(); k = s.kernel; "
        "a, b = (scan(m, root_of_cpu(k, s.cpu).pa, s.cpu.mode, k.table_enc) "
        "for m in (k.memory, s.target.stub)); "
        "print(a == b, type(k.memory).__name__, len(a.ranges) > 100)"
    )
    assert session.gdb.execute(f"python {code}").strip() == "True RamFile True"


IN_BULK = """
from gdb_sme.core.scan import scan
from gdb_sme.linux.translate import root_of_cpu
from gdb_sme.target.session import SESSIONS
session = SESSIONS.current()
kernel, cpu = session.kernel, session.cpu
where = root_of_cpu(kernel, cpu).pa, cpu.mode, kernel.table_enc
reads = []
read = type(kernel.memory).read
type(kernel.memory).read = lambda self, pa, length: (reads.append(pa), read(self, pa, length))[1]
try:
    found = []
    for in_bulk in (True, False):
        reads.clear()
        found.append(scan(kernel.memory, *where, in_bulk=in_bulk))
        found.append(len(reads))
finally:
    type(kernel.memory).read = read
print(found[0] == found[2], found[1] < found[3], len(found[0].troubles))
"""


def test_numpy_and_python_find_the_same(boot: OwnSessions, tmp_path: Path) -> None:
    session = boot("debian-6.12", "sme", until="shell", memory="4G")
    script = tmp_path / "in_bulk.py"
    script.write_text(IN_BULK)
    assert session.gdb.execute(f"source {script}").strip() == "True True 0"

    # The second half of the direct map's first pmd table: tables of garbage, of itself, of no RAM.
    ram, c_mask = Ram(session), 1 << 47
    leaf = answer(session, "sme pte 0xffff888000001000")["levels"]
    pmd, pte = (int(each["entry_pa"], 16) & ~0xFFF for each in leaf[-2:])
    for index, raw in enumerate((pmd | c_mask | 0x67, 0x7F0000000067, 0xFFFFFFFFFFFFFFFF)):
        ram.write(pmd + 8 * (256 + index), raw.to_bytes(8, "little"))
    for index in range(259, 512):
        raw = (0x1000000 + index * 4096 | c_mask | 0x67).to_bytes(8, "little")  # the kernel's text
        ram.write(pmd + 8 * index, raw)
    assert pte != pmd
    same, _, troubles = session.gdb.execute(f"source {script}").split()
    assert same == "True"
    assert int(troubles) >= 3


def test_filters_take_their_part_of_the_whole(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    whole = answer(session, "sme dump")["ranges"]
    asked = {
        "--encrypted": lambda each: each["encrypted"],
        "--unencrypted": lambda each: not each["encrypted"],
        "--user-pages": lambda each: each["permissions"]["user"],
        "--size 2M": lambda each: each["page_size"] == 1 << 21,
        "--level pte": lambda each: each["page_size"] == 1 << 12,
        "--region direct-map": lambda each: each["region"] == "direct map",
        "--wx": lambda each: each["permissions"]["write"] and each["permissions"]["execute"],
    }
    for option, belongs in asked.items():
        part = answer(session, f"sme dump {option}")["ranges"]
        assert part == [each for each in whole if belongs(each)], option
        if option != "--wx":
            assert 0 < len(part) < len(whole), option
    low, high = 0xFFFFFFFF83600000, 0xFFFFFFFF83603000
    part = pages(answer(session, f"sme dump {low:#x} {high:#x}")["ranges"])
    assert len(part) == 3
    assert [page[:2] for page in part] == [
        page[:2] for page in pages(whole) if low <= page[0] < high
    ]


def test_the_tables_themselves(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    tables = answer(session, "sme dump --tables")["tables"]
    ram = Ram(session)
    assert len(tables) > 80
    for each in tables:
        assert each["encrypted"] is True
        entry = ram.read(int(each["entry_pa"], 16), 8) if each["entry_pa"] else None
        if entry is not None:
            raw = int.from_bytes(entry, "little")
            assert raw == int(each["raw"], 16)
            assert raw & 0x000FFFFFFFFFF000 & ~(1 << 47) == int(each["pa"], 16)
        assert each["empty"] == (ram.read(int(each["pa"], 16), 4096) == bytes(4096))
    assert {each["level"] for each in tables} == {"pgd", "pud", "pmd", "pte"}


def test_a_tasks_own_tables(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    first = answer(session, "sme dump --user 1")
    assert first["root"]["table"] == "task 1 (init)"
    assert first["ranges"]
    assert all(int(each["end"], 16) <= 1 << 47 for each in first["ranges"])
    error = session.gdb.run("sme dump --user 2").error
    assert error == "sme dump: task 2 (kthreadd) is a kernel thread: it has no tables of its own"
    assert session.gdb.run("sme dump --user 4000000").error == "sme dump: there is no task 4000000"


def test_conflicts_are_those_by_design_until_one_is_made(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", until="shell")
    found = answer(session, "sme find --conflicts")["found"]
    assert 0x3600000 in {int(each["start"], 16) for each in found}
    assert all(each["by_design"] for each in found)

    # Take the C-bit out of one 2 MiB page of the direct map that the kernel image maps as well.
    walked = answer(session, "sme pte 0xffff888002400000")
    leaf = walked["levels"][-1]
    entry_pa, raw = int(leaf["entry_pa"], 16), int(leaf["raw"], 16)
    assert raw >> 47 & 1
    Ram(session).write(entry_pa, (raw & ~(1 << 47)).to_bytes(8, "little"))
    made = [
        each for each in answer(session, "sme find --conflicts")["found"] if not each["by_design"]
    ]
    assert [int(each["start"], 16) for each in made] == [0x2400000]
    assert {view["encrypted"] for view in made[0]["views"]} == {True, False}
    assert "CONFLICT: encrypted at" in session.gdb.execute("sme find 0x2400000")


def test_bytes_are_found_where_they_are(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    found = answer(session, 'sme find --bytes "Linux version 6.1"')["found"]
    ram = Ram(session)
    assert len(found) >= 2
    for each in found:
        start, end = int(each["start"], 16), int(each["end"], 16)
        assert ram.read(start, end - start) == b"Linux version 6.1"
    banner = session.gdb.evaluate("(unsigned long)&linux_banner")
    assert any(int(view["va"], 16) == banner for each in found for view in each["views"])


def test_damaged_tables_are_told_and_do_not_stop_it(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", until="shell")
    ram, c_mask = Ram(session), 1 << 47
    root = session.gdb.evaluate("(unsigned long)$cr3") & 0x000FFFFFFFFFF000 & ~c_mask
    before = pages(answer(session, "sme dump")["ranges"])
    damage = {
        100: root | c_mask | 0x67,  # to itself
        101: 0x7F0000000000 | 0x67,  # outside RAM
        102: root | c_mask | 0xE7,  # bit 7 must be zero in a pgd
    }
    for index, raw in damage.items():
        ram.write(root + 8 * index, raw.to_bytes(8, "little"))
    after = answer(session, "sme dump")
    kinds = {each["kind"]: each for each in after["troubles"] if each["level"] == "pgd"}
    assert set(kinds) == {"loop", "unreadable", "reserved"}
    for kind, index in (("loop", 100), ("unreadable", 101), ("reserved", 102)):
        assert int(kinds[kind]["entry_pa"], 16) == root + 8 * index
        assert int(kinds[kind]["raw"], 16) == damage[index]
    inside = range(100 << 39, 103 << 39)
    assert [page for page in pages(after["ranges"]) if page[0] not in inside] == before

    # A root that is no table: what user space has in a page.
    garbage = session.gdb.run("sme dump --root 0x1000000")
    assert garbage.error is None
    assert "more like these" in garbage.output or "ranges" in garbage.output


def test_ctrl_c_gives_the_prompt_back_and_the_stub_as_it_was(boot: OwnSessions) -> None:
    session = boot("debian-6.1", "sme", until="shell")
    # Over the stub the search takes most of a minute.
    session.gdb.execute(
        "python from gdb_sme.target.session import SESSIONS; s = SESSIONS.current(); "
        "s.kernel.memory = s.target.stub"
    )
    child = session.gdb.child
    child.sendline(f"sme find --bytes {'5a' * 40}")
    child.expect("sme find: at 0x[0-9a-f]+")  # progress, after a second
    child.sendintr()
    child.sendline("echo still-here\\n")
    child.expect("still-here")
    assert "Traceback" not in child.before
    assert "Quit" in child.before
    assert physical_mode(session) == '"0"'
    assert session.gdb.evaluate("$rip")

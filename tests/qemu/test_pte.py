# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme pte` on real kernels: page sizes, roots, and tables that the test breaks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions
from tests.qemu import inside

C47 = 1 << 47


def pte(session: Session, arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(session.gdb.execute(f"sme pte --json {arguments}"))
    return document


def text(session: Session, arguments: str) -> list[str]:
    return session.gdb.execute(f"sme pte {arguments}").splitlines()


def new_stop(session: Session) -> None:
    """Make gdb forget what it has read: RAM was changed under it."""
    session.gdb.execute("set $rax = $rax")


@contextmanager
def entry_set(session: Session, pa: int, raw: int) -> Iterator[None]:
    """An entry of the guest's tables set to ``raw``: in its RAM, which lies below 3 GiB here."""
    before = os.pread(session.machine.ram_fd, 8, pa)
    os.pwrite(session.machine.ram_fd, raw.to_bytes(8, "little"), pa)
    new_stop(session)
    try:
        yield
    finally:
        os.pwrite(session.machine.ram_fd, before, pa)
        new_stop(session)


@pytest.fixture
def running(booted: SharedSessions) -> Session:
    return booted("debian-6.1", "sme", until="shell")


def test_pages_of_4_kib_and_2_mib(running: Session) -> None:
    large = pte(running, "&init_top_pgt")
    assert (large["page_size"], large["encrypted"], large["outcome"]) == (2 << 20, True, "mapped")
    assert (large["region"], large["symbol"]) == ("kernel image", "init_top_pgt")
    assert [level["level"] for level in large["levels"]] == ["pgd", "pud", "pmd"]
    small = pte(running, "__start_bss_decrypted")
    assert (small["page_size"], small["encrypted"]) == (4096, False)
    assert small["note"] == ".bss..decrypted: by design"
    assert [level["level"] for level in small["levels"]] == ["pgd", "pud", "pmd", "pte"]
    assert text(running, "__start_bss_decrypted")[-1].endswith(
        "NOT encrypted (.bss..decrypted: by design)"
    )
    # Its alias in the direct map keeps the bit.
    alias = pte(running, f"page_offset_base + {small['pa']}")
    assert (alias["pa"], alias["encrypted"], alias["region"]) == (small["pa"], True, "direct map")


def test_pages_of_1_gib_and_the_memory_above_4_gib(boot: OwnSessions) -> None:
    session = boot(
        "debian-6.1",
        "sme",
        until="shell",
        memory="5G",
        qemu_args=("-cpu", "EPYC,phys-bits=52,+pdpe1gb"),
    )
    found = pte(session, "page_offset_base + 0x40000000")
    assert (found["page_size"], found["pa"], found["encrypted"]) == (1 << 30, "0x40000000", True)
    assert [level["level"] for level in found["levels"]] == ["pgd", "pud"]
    assert "PSE" in found["levels"][-1]["flags"]
    assert text(session, "page_offset_base + 0x40000123")[-2].endswith("1 GiB")
    # QEMU moves what does not fit below the PCI hole to 1 TiB, and so does the second view.
    high = pte(session, "page_offset_base + 0x10000000000")
    assert (int(high["pa"], 16), high["encrypted"]) == (1 << 40, True)
    va = int(high["va"], 16)
    assert session.machine.qmp.hmp(f"gva2gpa {va:#x}") == f"gpa: {1 << 40 | C47:#x}\n"


def test_an_address_in_any_form_of_gdbs(running: Session) -> None:
    address = running.gdb.evaluate("&init_top_pgt")
    for form in (
        "init_top_pgt",
        "&init_top_pgt[0]",
        f"{address:#x}",
        f"{address}",
        "(char *)&init_top_pgt",
    ):
        assert int(pte(running, form)["va"], 16) == address, form
    assert int(pte(running, "&system_state + 1")["va"], 16) == 4 + running.gdb.evaluate(
        "&system_state"
    )
    assert pte(running, "schedule")["symbol"] == "schedule"
    assert int(pte(running, "-4096")["va"], 16) == (1 << 64) - 4096


def test_roots(running: Session) -> None:
    by_cpu = pte(running, "--root 0 &init_top_pgt")
    assert by_cpu["root"]["source"] == "CR3 of CPU 0"
    by_name = pte(running, "--root init_top_pgt &init_top_pgt")
    assert by_name["root"]["table"] == "init_top_pgt"
    assert by_name["root"]["c_bit"] is True
    assert pte(running, "--root init_level4_pgt &init_top_pgt")["root"] == {
        **by_name["root"], "source": "--root init_level4_pgt",
    }  # fmt: skip
    by_value = pte(running, f"&init_top_pgt --root {by_name['root']['raw']}")
    assert by_value["root"]["table"] == "init_top_pgt"
    assert by_value["levels"] == by_name["levels"]
    by_expression = pte(running, "--root $cr3 &init_top_pgt")
    assert by_expression["root"]["pa"] == by_cpu["root"]["pa"]

    by_mm = pte(running, "--root init_mm &init_top_pgt")
    assert by_mm["root"] == {
        **by_name["root"], "source": "--root init_mm", "table": "init_mm.pgd",
    }  # fmt: skip
    without = running.gdb.run("sme pte --root efi_mm &init_top_pgt")
    assert without.error == "sme pte: efi_mm.pgd is 0x0: efi_mm has no page tables"
    no_table = running.gdb.run("sme pte --root linux_banner &init_top_pgt")
    assert re.fullmatch(
        r"sme pte: --root linux_banner: linux_banner at 0x[0-9a-f]+ is no page table: not aligned",
        str(no_table.error),
    )
    wrong = running.gdb.run("sme pte --root 7 &init_top_pgt")
    assert wrong.error == "sme pte: --root 7: there are CPUs 0 to 0"
    freed = running.gdb.run("sme pte --root early_top_pgt &init_top_pgt")
    assert freed.error == (
        "sme pte: early_top_pgt was freed after boot; there is no table any more"
    )


def test_entries_that_are_not_present_are_decoded(running: Session) -> None:
    """What pgtable_64.h builds, put into the guest's tables."""
    small = pte(running, "__start_bss_decrypted")
    at = int(small["levels"][-1]["entry_pa"], 16)
    with entry_set(running, at, 0x0FFFFFFFFFDBB600):
        found = pte(running, "__start_bss_decrypted")
        assert (found["outcome"], found["pa"]) == ("not-present", None)
        assert found["nonpresent"] == {
            "kind": "swap", "pfn": None, "swap_type": 1, "swap_offset": "0x1224",
        }  # fmt: skip
    # What the highest type numbers mean depends on the kernel's configuration. This one has
    # CONFIG_MIGRATION, and neither CONFIG_MEMORY_FAILURE nor CONFIG_DEVICE_PRIVATE.
    kinds = []
    for number in range(running.gdb.evaluate("sizeof(swap_info) / 8"), 32):
        inverted = ~(0x1234 << 9) & ((1 << 59) - 1) & ~0x1FF
        with entry_set(running, at, number << 59 | inverted):
            held = pte(running, "__start_bss_decrypted")["nonpresent"]
        kinds.append(held["kind"])
        assert held["pfn"] == (None if held["kind"] == "pte-marker" else "0x1234")
    assert kinds == [
        "migration-read", "migration-read-exclusive", "migration-write",
        "pte-marker", "swapin-error",
    ]  # fmt: skip
    with entry_set(running, at, 0):
        assert text(running, "__start_bss_decrypted")[-1] == (
            f"not mapped: the pte for {small['va']}-{int(small['va'], 16) + 0xFFF:#x} is empty"
        )
    with entry_set(running, at, int(small["levels"][-1]["raw"], 16) & ~1):
        assert pte(running, "__start_bss_decrypted")["nonpresent"]["kind"] == "cleared"


def test_reserved_bits_are_reported(running: Session) -> None:
    large = pte(running, "&init_top_pgt")
    leaf = large["levels"][-1]
    at, raw = int(leaf["entry_pa"], 16), int(leaf["raw"], 16)
    with entry_set(running, at, raw | 1 << 14):
        found = pte(running, "&init_top_pgt")
        assert (found["outcome"], found["reserved"], found["pa"]) == ("reserved", "0x4000", None)
        assert text(running, "&init_top_pgt")[-1] == (
            "reserved bits 0x4000 are set in the pmd: the CPU would fault here"
        )


def test_a_table_that_points_to_itself(running: Session) -> None:
    top = pte(running, "0")
    root = int(top["root"]["pa"], 16)
    with entry_set(running, root, root | C47 | 0x67):
        lines = text(running, "0")
        assert sum("points to itself" in line for line in lines) == 3
        found = pte(running, "0")
        assert [level["repeated"] for level in found["levels"]] == [False, True, True, True]
        assert int(found["pa"], 16) == root


def test_a_table_outside_ram(running: Session) -> None:
    root = int(pte(running, "0")["root"]["pa"], 16)
    with entry_set(running, root, 0x700000000 | C47 | 0x67):
        last = text(running, "0")[-1]
        assert last.startswith("cannot read the pud at 0x700000000: outside guest RAM (0x0-0x")
        found = pte(running, "0")
        assert (found["outcome"], len(found["levels"])) == ("unreadable", 1)
    # Where nobody told about a C-bit, the answer asks for it.
    session = running
    session.gdb.execute("set sme c-bit 50")
    try:
        found = pte(session, "&init_top_pgt")
        assert found["outcome"] == "unreadable"
    finally:
        session.gdb.execute("set sme c-bit auto")


def test_one_read_a_level(running: Session) -> None:
    for address, levels in (("&init_top_pgt", 3), ("__start_bss_decrypted", 4), ("0", 1)):
        reads = inside.call(running, "reads_of", command=f"sme pte {address}")
        walked = [read for read in reads if read[1] == 8]
        assert len(walked) >= levels
        entries = {int(each["entry_pa"], 16) for each in pte(running, address)["levels"]}
        # Every entry is read once; what else is read are the kernel's variables, for the words.
        assert sorted(pa for pa, _ in reads if pa in entries) == sorted(entries)


def test_one_packet_a_level(running: Session, tmp_path: Path) -> None:
    """As gdb's own log of the remote protocol has it, where all is read over the stub."""
    gdb, log, script = running.gdb, tmp_path / "packets", tmp_path / "script.gdb"
    gdb.execute("python from gdb_sme.target.session import SESSIONS; s = SESSIONS.current()")
    gdb.execute("python s.kernel.memory = s.target.stub")
    try:
        for address, levels in (("&init_top_pgt", 3), ("&__start_bss_decrypted", 4)):
            script.write_text(
                f"set logging file {log}\nset logging overwrite on\nset logging redirect on\n"
                f"set logging enabled on\nset debug remote 1\nsme pte {address}\n"
                "set debug remote 0\nset logging enabled off\n"
            )
            gdb.execute(f"source {script}")
            read = [
                int(pa, 16)
                for pa in re.findall(r"Sending packet: \$m([0-9a-f]+),", log.read_text())
            ]
            walked = [int(each["entry_pa"], 16) for each in pte(running, address)["levels"]]
            assert len(walked) == levels
            at = read.index(walked[0])
            assert read[at : at + levels] == walked
            assert [read.count(pa) for pa in walked] == [1] * levels
    finally:
        gdb.execute("python SESSIONS.forget()")
        gdb.execute("set logging redirect off")


def test_the_mode_of_the_stub_is_always_switched_back(running: Session, tmp_path: Path) -> None:
    """After an answer, an error, and Ctrl-C in the middle: gdb reads virtual memory again."""
    gdb = running.gdb

    def physical_mode() -> str:
        match = re.search(r'received: "(\d)"', gdb.execute("maint packet qqemu.PhyMemMode"))
        assert match
        return match[1]

    gdb.execute("python from gdb_sme.target.session import SESSIONS")
    gdb.execute("python stub = SESSIONS.current().target.stub")
    assert physical_mode() == "0"
    gdb.execute("python stub.read(0x1000, 8)")
    assert physical_mode() == "0"
    assert gdb.run("python stub.read(0x7fff00000000, 8)").failed
    assert physical_mode() == "0"
    banner = gdb.execute("x/s &linux_banner")
    for attempt in range(3):
        begun = tmp_path / str(attempt)
        pending = gdb.begin(
            f"python from tests.qemu import inside; inside.read_on_and_on({str(begun)!r})"
        )
        while not begun.exists():
            time.sleep(0.01)
        gdb.interrupt()
        assert pending.result().failed
        assert physical_mode() == "0"
    assert gdb.execute("x/s &linux_banner") == banner


def test_reading_commands_change_nothing(running: Session) -> None:
    def state() -> tuple[bytes, str]:
        with open(f"/proc/self/fd/{running.machine.ram_fd}", "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        return digest, running.machine.qmp.hmp("info registers -a")

    before = state()
    for command in (
        "sme status", "sme cr3", "sme pte &init_top_pgt", "sme pte 0", "sme pte $rip",
        "sme decode 0x8000800002a001e3", "print $c_bit(&init_top_pgt)", "print $pte($rsp)",
        "print $sme_pa(&init_top_pgt)", "print init_top_pgt[511]",
    ):  # fmt: skip
        running.gdb.execute(command)
    assert state() == before

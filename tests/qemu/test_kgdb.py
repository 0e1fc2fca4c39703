# SPDX-License-Identifier: GPL-2.0-or-later
"""kgdb over a serial line, SME active: it shows what QEMU's stub shows of the same guest."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.kgdb import KgdbSession, When, enter_kgdb
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.kgdb import (
    C_BIT,
    IMAGES,
    KM,
    MASK,
    MODULE,
    TASK,
    error_of,
    shell,
    shown,
    walk,
    with_module,
    without_debug_information,
)
from tests.qemu.oracle import info_tlb
from tests.qemu.other_tools import answer, crash_walks, libkdumpfile_walks

ADDRESSES = {
    "kernel": "&init_top_pgt",
    "text": "schedule",
    "direct map": f"{TASK}",
    "vmalloc": f"{TASK}->stack",
    "user": f"{TASK}->mm->start_stack",
    "user code": f"{TASK}->mm->start_code",
    "hole": "0x10000000000",
}


@pytest.fixture(scope="module", params=IMAGES)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KgdbSession]:
    """A guest that its shell has sent into kgdb, with a module; each test leaves it there."""
    config = with_module(request.param, tmp_path_factory.mktemp("initrd"))
    with KgdbSession(config, When.SHELL) as made:
        shell(made, f"insmod /{MODULE}.ko")
        yield made


@pytest.fixture(scope="module")
def module(session: KgdbSession) -> int:
    """Address of the module's function, by the guest."""
    # Three times: the serial port of a busy machine doubles a character now and then.
    listed = shell(session, f"grep ' {MODULE}\t' /proc/kallsyms > /own; cat /own /own /own")
    found = set(re.findall(rf"^([0-9a-f]{{16}}) t {MODULE}\t", listed, re.MULTILINE))
    assert len(found) == 1, listed
    return int(found.pop(), 16)


def test_status(session: KgdbSession) -> None:
    status = shown(session.gdb, "sme status")
    assert status["target"].startswith("kgdb at ")
    assert (status["active"], status["c_bit"]) == (True, C_BIT)
    assert status["stage"] == "running"
    assert status["kernel"]["koff"] == "0x0"
    cpu = status["cpus"][0]
    assert (cpu["cr3"], cpu["cr4"], cpu["table"]) == (None, None, None)
    assert cpu["kernels_table"]["name"] == "loaded_mm->pgd"
    assert re.fullmatch(r"task \d+ \(sh\)", cpu["kernels_table"]["detail"])
    text = session.gdb.execute("sme status")
    assert "no CR3 from this target; the kernel walks loaded_mm->pgd at" in text


def test_cr3_is_not_claimed(session: KgdbSession) -> None:
    report = shown(session.gdb, "sme cr3")
    assert report["cpus"][0]["cr3"] is None
    conclusion = report["cpus"][0]["conclusion"]
    assert "gives no CR3: neither its address nor its C-bit can be checked" in conclusion
    assert "loaded_mm->pgd, task" in conclusion
    assert "whether it holds init cannot be known" in error_of(session.gdb, "sme cr3 --expect init")


def test_the_same_as_over_qemus_stub(session: KgdbSession) -> None:
    values = {name: session.gdb.evaluate(text) for name, text in ADDRESSES.items()}
    over_kgdb = {name: walk(session.gdb, f"{va:#x}") for name, va in values.items()}
    conclusion = shown(session.gdb, "sme cr3")["cpus"][0]["conclusion"]
    session.stop_by_qemu()
    try:
        over_stub = {name: walk(session.stub, f"{va:#x}") for name, va in values.items()}
        cr3 = session.stub.evaluate("$cr3")
        status = shown(session.stub, "sme status")
    finally:
        session.resume_by_qemu()
    assert status["target"].startswith("QEMU's gdb stub")
    assert over_kgdb == over_stub
    # The value that the kernel would have loaded is the one that the CPU has.
    assert f"has loaded {cr3:#018x}, " in conclusion
    assert cr3 & MASK
    regions = {name: each["region"] for name, each in over_kgdb.items()}
    assert regions["vmalloc"] == "vmalloc"
    assert regions["user"] == regions["user code"] == "user space"
    for name, each in over_kgdb.items():
        assert each["outcome"] == ("not-present" if name == "hole" else "mapped"), name
        if name != "hole":
            assert all(level["c_bit"] for level in each["levels"]), name
    assert not over_kgdb["kernel"]["permissions"]["user"]
    assert over_kgdb["user code"]["permissions"]["user"]


def test_dump_find_and_audit_are_the_same_as_over_qemus_stub(session: KgdbSession) -> None:
    def look(gdb: Gdb) -> dict[str, object]:
        dump = shown(gdb, "sme dump")
        conflicts = shown(gdb, "sme find --conflicts")
        audit = shown(gdb, "sme audit")
        verdicts = {rule["name"]: rule["verdict"] for rule in audit["rules"]}
        assert "fail" not in verdicts.values()
        return {
            "ranges": (dump["ranges"], dump["troubles"], dump["tables_read"]),
            "conflicts": conflicts["found"],
            "cr3": verdicts.pop("cr3"),
            "verdicts": verdicts,
        }

    over_kgdb = look(session.gdb)
    session.stop_by_qemu()
    try:
        over_stub = look(session.stub)
    finally:
        session.resume_by_qemu()
    assert over_kgdb.pop("cr3") == "n/a"
    assert over_stub.pop("cr3") == "pass"
    assert over_kgdb == over_stub


def test_module_addresses_are_those_of_qemus_monitor(session: KgdbSession, module: int) -> None:
    over_kgdb = walk(session.gdb, f"{module:#x}")
    session.stop_by_qemu()
    try:
        over_stub = walk(session.stub, f"{module:#x}")
        translated = session.machine.qmp.hmp(f"gva2gpa {module:#x}").strip()
        pages = {va: (pa, flags) for va, pa, flags in info_tlb(session)}
    finally:
        session.resume_by_qemu()
    assert over_kgdb == over_stub
    assert (over_kgdb["region"], over_kgdb["outcome"]) == ("modules", "mapped")
    assert over_kgdb["encrypted"]
    pa, page = int(over_kgdb["pa"], 16), module & ~0xFFF
    assert translated == f"gpa: {pa | MASK:#x}"
    found, flags = pages[page]
    assert found == pa - (module - page) | MASK
    rights = over_kgdb["permissions"]
    assert (rights["execute"], rights["write"]) == ("X" not in flags, "W" in flags) == (True, False)


def test_a_dump_made_at_the_same_stop_says_the_same(
    session: KgdbSession, module: int, tmp_path: Path
) -> None:
    """kgdb, QEMU's stub, the dump in gdb, libkdumpfile and crash, with SME active."""
    values = [*(session.gdb.evaluate(text) for text in ADDRESSES.values()), module]
    over_kgdb = [walk(session.gdb, f"{va:#x}") for va in values]
    ranges = shown(session.gdb, "sme dump")["ranges"]
    saved = tmp_path / "dump"
    vmlinux = session.machine.config.image.vmlinux
    assert vmlinux is not None
    session.stop_by_qemu()
    try:
        session.machine.qmp.hmp(f"dump-guest-memory {saved}")
        over_stub = [walk(session.stub, f"{va:#x}") for va in values]
    finally:
        session.resume_by_qemu()
    assert over_stub == over_kgdb
    try:
        with Gdb([str(vmlinux), str(saved)], timeout=240) as gdb:
            gdb.execute(f"source {PLUGIN}")
            assert [walk(gdb, f"{va:#x}") for va in values] == over_kgdb
            assert shown(gdb, "sme dump")["ranges"] == ranges
        root = int(over_kgdb[0]["root"]["pa"], 16)
        assert libkdumpfile_walks(tmp_path, saved, root, values) == [
            answer(each) for each in over_kgdb
        ]
        if session.machine.config.image.name.startswith("kgdb-6.1:"):
            kernel = [va for va in values if va >> 63]
            assert crash_walks(vmlinux, saved, kernel) == [
                answer(each, MASK) for va, each in zip(values, over_kgdb, strict=True) if va >> 63
            ]
    finally:
        saved.unlink()


def test_functions_and_printers(session: KgdbSession) -> None:
    gdb = session.gdb
    table = gdb.evaluate("(long)&init_top_pgt") - KM
    base = gdb.evaluate("page_offset_base")
    assert gdb.evaluate("$sme_me_mask()") == MASK
    assert gdb.evaluate("$sme_pa(&init_top_pgt)") == table | MASK
    assert gdb.evaluate(f"$sme_pa({base + table:#x})") == table | MASK
    assert gdb.evaluate("$sme_pa_nodebug(&init_top_pgt)") == table | MASK
    assert gdb.evaluate(f"$sme_va({table | MASK:#x})") == base + table
    assert gdb.evaluate("$c_bit(&init_top_pgt)") == 1
    assert gdb.evaluate("$c_bit(&__start_bss_decrypted)") == 0
    last = walk(gdb, "$sp")["levels"][-1]
    assert gdb.evaluate("$pte($sp)") == int(last["raw"], 16)
    entry = gdb.evaluate("init_top_pgt[511].pgd")
    assert f"{entry:#018x} C -> " in gdb.execute("print init_top_pgt[511]")
    assert "bit 47: encrypted" in gdb.execute(f"sme decode {entry:#x}")


def test_snapshot_and_report(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    gdb.execute("sme snapshot before")
    gdb.execute("stepi")
    gdb.execute("sme snapshot after")
    assert "no difference" in gdb.execute("sme diff before after")
    report = tmp_path / "report.html"
    assert "0 fail" in gdb.execute(f"sme report {report}")
    assert "kgdb at " in report.read_text()


def test_tasks_by_their_pid(session: KgdbSession) -> None:
    gdb = session.gdb
    init = shown(gdb, "sme dump --user 1")
    assert init["ranges"]
    assert all(each["permissions"]["user"] for each in init["ranges"])
    assert "there is no task 999999" in error_of(gdb, "sme dump --user 999999")
    assert "task 2 (kthreadd) is a kernel thread" in error_of(gdb, "sme dump --user 2")


def test_hardware_breakpoints_are_swallowed(session: KgdbSession) -> None:
    """What the warning says is so: the guest runs through one, and stops at an ordinary one."""
    gdb, console = session.gdb, session.machine.console
    gdb.execute("hbreak do_sys_openat2")
    going = gdb.begin("continue")
    before = console.size()
    console.send("cat /proc/version; echo ran-$((40 + 2))")
    console.wait_for("ran-42", 60, start=before)
    enter_kgdb(session.machine)
    output = going.result().output
    gdb.execute("delete")
    assert "kgdb_breakpoint" in output
    assert "do_sys_openat2" not in output


def test_breakpoint_in_the_kernel(session: KgdbSession) -> None:
    gdb = session.gdb
    gdb.execute("break do_sys_openat2")
    going = gdb.begin("continue")
    session.machine.console.send("cat /proc/version")
    output = going.result().output
    assert "do_sys_openat2" in output
    assert "do_sys_openat2" in gdb.execute("backtrace 1")
    status = shown(gdb, "sme status")
    assert status["cpus"][0]["rip"] == f"{gdb.evaluate('$pc'):#018x}"
    assert re.fullmatch(r"task \d+ \(cat\)", status["cpus"][0]["kernels_table"]["detail"])
    assert walk(gdb, "$pc")["outcome"] == "mapped"
    gdb.execute("delete")


@pytest.mark.parametrize("command", ["hbreak", "watch", "rwatch", "awatch"])
def test_swallowed_hardware_breakpoints_are_told(session: KgdbSession, command: str) -> None:
    gdb = session.gdb
    gdb.execute("disconnect")
    session.connect()  # it is told once a connection, and before any command of gdb_sme's
    what = "do_sys_openat2" if command == "hbreak" else "-l jiffies_64"
    try:
        first = gdb.run(f"{command} {what}")
        if first.failed and command == "rwatch":
            pytest.fail(f"rwatch cannot be set: {first.error}")
        assert "this kernel swallows kgdb's hardware breakpoints" in first.output
        assert "swallows" not in gdb.execute(f"{command} {what}")
        assert "swallows" not in gdb.execute("break schedule")
    finally:
        gdb.execute("delete")


def test_what_kgdb_cannot_do(session: KgdbSession) -> None:
    error = error_of(session.gdb, "sme emulate sme")
    assert "kgdb, which begins in setup_arch() at the earliest" in error


def test_target_by_hand(session: KgdbSession) -> None:
    gdb = session.gdb
    try:
        gdb.execute("set sme target kgdb")
        assert shown(gdb, "sme status")["target"].startswith("kgdb at ")
        gdb.execute("set sme target qemu")
        assert "is not one that is known; probed: qemu" in error_of(gdb, "sme status")
    finally:
        gdb.execute("set sme target auto")
    # QEMU's stub reads virtual addresses as kgdb does: what is set is what counts.
    va = gdb.evaluate(f"{TASK}->mm->start_stack")
    over_kgdb = walk(gdb, f"{va:#x}")
    session.stop_by_qemu()
    try:
        session.stub.execute("set sme target kgdb")
        assert shown(session.stub, "sme status")["target"].startswith("kgdb at ")
        assert walk(session.stub, f"{va:#x}") == over_kgdb
    finally:
        session.stub.execute("set sme target auto")
        session.resume_by_qemu()


def test_without_debug_information(session: KgdbSession, tmp_path: Path) -> None:
    """With names alone all that needs no types works, and what needs some says so."""
    gdb = session.gdb
    vmlinux = session.machine.config.image.vmlinux
    assert vmlinux is not None
    user = gdb.evaluate(f"{TASK}->mm->start_stack")
    stack = gdb.evaluate("$sp")
    with_types = walk(gdb, f"{stack:#x}")
    table = gdb.evaluate("(long)&init_top_pgt") - KM
    try:
        gdb.execute(f"file {without_debug_information(vmlinux, tmp_path)}")
        status = shown(gdb, "sme status")
        assert (status["active"], status["c_bit"]) == (True, C_BIT)
        known = status["cpus"][0]["kernels_table"]
        assert (known["name"], int(known["pa"], 16)) == ("init_top_pgt", table)
        assert "user addresses" in known["detail"]
        conclusion = shown(gdb, "sme cr3")["cpus"][0]["conclusion"]
        assert "nor is the value to be had that the kernel has loaded" in conclusion
        assert walk(gdb, f"{stack:#x}")["levels"][1:] == with_types["levels"][1:]
        assert "init_top_pgt, the kernel's half alone" in gdb.execute(f"sme pte {user:#x}")
        assert gdb.evaluate("$sme_pa(0xffffffff81000000)") == 0x1000000 | MASK
        assert "load the vmlinux" in error_of(gdb, "sme dump --user 1")
        verdicts = {rule["verdict"] for rule in shown(gdb, "sme audit")["rules"]}
        assert verdicts == {"pass", "n/a"}
    finally:
        gdb.execute(f"file {vmlinux}")


def test_system_map_and_no_symbols_at_all(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    vmlinux = session.machine.config.image.vmlinux
    assert vmlinux is not None
    stack = gdb.evaluate("$sp")
    with_types = walk(gdb, f"{stack:#x}")
    system_map = tmp_path / "System.map"
    with system_map.open("w") as stream:
        subprocess.run(["nm", "-n", vmlinux], stdout=stream, check=True)
    try:
        gdb.execute("file")
        gdb.execute("symbol-file")
        for command in (f"sme pte {stack:#x}", "sme cr3", "sme dump", "sme find 0x1000000"):
            assert "no kernel symbols; load them with: file vmlinux" in error_of(gdb, command)
        assert "no kernel symbols" in error_of(gdb, "sme audit")
        assert shown(gdb, "sme status")["active"] is False
        gdb.execute(f"set sme system-map {system_map}")
        assert shown(gdb, "sme status")["c_bit"] == C_BIT
        assert walk(gdb, f"{stack:#x}")["levels"][1:] == with_types["levels"][1:]
    finally:
        gdb.execute("set sme system-map")
        gdb.execute(f"file {vmlinux}")
    assert walk(gdb, f"{stack:#x}") == with_types


def test_vmlinux_of_another_kernel(session: KgdbSession) -> None:
    gdb = session.gdb
    config = session.machine.config
    other = next(each for each in IMAGES if not config.image.name.startswith(f"{each}:"))
    try:
        gdb.execute(f"file {machine_config(other).image.vmlinux}")
        assert "the running kernel is not the one of the symbols" in error_of(gdb, "sme cr3")
        assert "is not the one of the symbols" in error_of(gdb, "sme pte $sp")
    finally:
        gdb.execute(f"file {config.image.vmlinux}")
    assert shown(gdb, "sme status")["active"]

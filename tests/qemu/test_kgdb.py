# SPDX-License-Identifier: GPL-2.0-or-later
"""kgdb over a serial line, SME active: it shows what QEMU's stub shows of the same guest."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.gdb import Gdb
from gdb_sme.harness.kgdb import KgdbSession, When
from gdb_sme.harness.pytest_plugin import OwnSessions, machine_config
from tests.qemu.conftest import Runner
from tests.qemu.serial_line import SerialLine

C_BIT = 47
TASK = "kgdb_info[kgdb_active.counter].task"
ADDRESSES = {
    "kernel": "&init_top_pgt",
    "text": "schedule",
    "direct map": f"{TASK}",
    "vmalloc": f"{TASK}->stack",
    "user": f"{TASK}->mm->start_stack",
    "user code": f"{TASK}->mm->start_code",
    "hole": "0x10000000000",
}


@pytest.fixture(scope="module", params=["kgdb-6.1", "kgdb-6.12"])
def session(request: pytest.FixtureRequest) -> Iterator[KgdbSession]:
    """A guest that its shell has sent into kgdb; each test leaves it there."""
    with KgdbSession(machine_config(request.param, "sme", memory="256M")) as made:
        yield made


def shown(gdb: Gdb, command: str) -> dict[str, Any]:
    """The JSON that a command shows."""
    payload: dict[str, Any] = json.loads(gdb.execute(f"{command} --json"))
    return payload


def walk(gdb: Gdb, expression: str) -> dict[str, Any]:
    """A walk, without the words that say where the root was learned."""
    payload = shown(gdb, f"sme pte {expression}")
    root = payload["root"]
    payload["root"] = {name: root[name] for name in ("pa", "raw", "c_bit")}
    return payload


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
    failed = session.gdb.run("sme cr3 --expect init")
    assert failed.error is not None
    assert "whether it holds init cannot be known" in failed.error


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
    assert cr3 >> C_BIT & 1
    regions = {name: each["region"] for name, each in over_kgdb.items()}
    assert regions["vmalloc"] == "vmalloc"
    assert regions["user"] == regions["user code"] == "user space"
    for name, each in over_kgdb.items():
        assert each["outcome"] == ("not-present" if name == "hole" else "mapped"), name
        if name != "hole":
            assert all(level["c_bit"] for level in each["levels"]), name
    assert not over_kgdb["kernel"]["permissions"]["user"]
    assert over_kgdb["user code"]["permissions"]["user"]


def test_dump_and_audit_are_the_same_as_over_qemus_stub(session: KgdbSession) -> None:
    def slow(gdb: Gdb, command: str) -> dict[str, Any]:
        progress, start, document = gdb.execute(f"{command} --json", timeout=400).partition('{"')
        assert progress == "" or progress.startswith(f"{command}: ")
        result: dict[str, Any] = json.loads(start + document)
        return result

    def look(gdb: Gdb) -> tuple[object, dict[str, str]]:
        dump, audit = slow(gdb, "sme dump"), slow(gdb, "sme audit")
        verdicts = {rule["name"]: rule["verdict"] for rule in audit["rules"]}
        return (dump["ranges"], dump["troubles"], dump["tables_read"]), verdicts

    dump, verdicts = look(session.gdb)
    session.stop_by_qemu()
    try:
        stub_dump, stub_verdicts = look(session.stub)
    finally:
        session.resume_by_qemu()
    assert dump == stub_dump
    assert verdicts.pop("cr3") == "n/a"
    assert stub_verdicts.pop("cr3") == "pass"
    assert verdicts == stub_verdicts


def reads(log: str) -> list[str]:
    """The memory reads that gdb sent."""
    return re.findall(r"Sending packet: \$(m[0-9a-f]+,[0-9a-f]+)#", log)


def test_eight_bytes_a_level_and_nothing_twice(session: KgdbSession) -> None:
    gdb = session.gdb
    va = gdb.evaluate(f"{TASK}->mm->start_stack")
    gdb.execute("stepi")
    gdb.execute("sme status")
    gdb.execute("set debug remote 1")
    try:
        first = reads(gdb.execute(f"sme pte {va:#x}"))
        again = reads(gdb.execute(f"sme pte {va:#x}"))
        everything = first + reads(gdb.execute(f"sme pte {va + 0x1000:#x}"))
    finally:
        gdb.execute("set debug remote 0")
    assert again == []
    assert len(everything) == len(set(everything))
    assert len([each for each in first if each.endswith(",8")]) >= 4


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
    assert walk(gdb, "$pc")["outcome"] == "mapped"
    gdb.execute("delete")


def test_swallowed_hardware_breakpoints_are_told(session: KgdbSession) -> None:
    output = session.gdb.execute("hbreak do_sys_openat2")
    session.gdb.execute("delete")
    assert "this kernel swallows kgdb's hardware breakpoints" in output


@pytest.mark.parametrize("command", ["sme emulate sme", "sme trace start"])
def test_what_kgdb_cannot_do(session: KgdbSession, command: str) -> None:
    error = session.gdb.run(command).error
    assert error is not None
    assert "kgdb, which begins in setup_arch() at the earliest" in error


def test_target_by_hand(session: KgdbSession) -> None:
    gdb = session.gdb
    try:
        gdb.execute("set sme target kgdb")
        assert shown(gdb, "sme status")["target"].startswith("kgdb at ")
        gdb.execute("set sme target qemu")
        error = gdb.run("sme status").error
        assert error is not None
        assert "is not one that is known; probed: qemu" in error
    finally:
        gdb.execute("set sme target auto")


def over(session: KgdbSession, line: SerialLine) -> None:
    """Put gdb onto another line to the same kernel, which waits meanwhile."""
    session.gdb.run("disconnect")
    session.gdb.execute("set remotetimeout 3")
    session.gdb.execute(f"target remote {line.path}")


def test_line_cut_in_the_middle_of_a_command(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    va = gdb.evaluate(f"{TASK}->mm->start_stack")
    before = walk(gdb, f"{va:#x}")
    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        blocks = iter(range(1000))
        line.disturb = lambda data: data if next(blocks) < 8 else b""
        error = gdb.run(f"sme pte {va:#x}").error
        assert error is not None
        assert "\n" not in error.strip()
        assert "Traceback" not in error
        assert re.search("connection|went away|closed", error), error
    error = gdb.run("sme status").error
    assert error is not None
    assert "no target; connect first" in error
    session.connect()
    assert walk(gdb, f"{va:#x}") == before


def test_garbage_on_the_line(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    va = gdb.evaluate(f"{TASK}->mm->start_stack")
    before = walk(gdb, f"{va:#x}")
    packets, spoiled = itertools.count(), []

    def disturb(data: bytes) -> bytes:
        if b"$" in data and next(packets) % 4 == 1:
            spoiled.append(data)
            return spoil(data)
        return data

    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        line.disturb = disturb
        assert walk(gdb, f"{va:#x}") == before
        gdb.run("disconnect")
    assert len(spoiled) > 2
    session.connect()


def spoil(data: bytes) -> bytes:
    """A packet with noise before and in it."""
    return b"\x00~\xff" + data.replace(b"$", b"$5a", 1)


def test_nothing_but_garbage(session: KgdbSession, tmp_path: Path) -> None:
    """More than gdb's repetitions can cure: a line of words, and all is well on a new line."""
    gdb = session.gdb
    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        line.disturb = spoil
        for _ in range(2):
            result = gdb.run("sme status")
            assert result.error is not None
            assert re.match("sme status: ", result.error), result
            assert "Traceback" not in result.output + result.error
        line.disturb = lambda data: data
        gdb.run("disconnect")
    session.connect()
    assert shown(gdb, "sme status")["active"]


def test_nobody_at_the_other_end(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    with SerialLine(tmp_path / "line", None) as line:
        gdb.run("disconnect")
        gdb.execute("set remotetimeout 1")
        assert gdb.run(f"target remote {line.path}").failed
        error = gdb.run("sme status").error
        assert error is not None
        assert "no target; connect first" in error
    session.connect()
    assert shown(gdb, "sme status")["active"]


def test_interrupted_command(session: KgdbSession, tmp_path: Path) -> None:
    """Ctrl-C ends the command, not the session."""
    gdb = session.gdb
    under_way, blocks = threading.Event(), itertools.count()

    def disturb(data: bytes) -> bytes:
        if next(blocks) == 100:
            under_way.set()
        return data

    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        line.disturb = disturb
        pending = gdb.begin("sme dump")
        assert under_way.wait(60)
        gdb.interrupt()
        assert pending.result().error == "Quit"
        assert walk(gdb, "$sp")["outcome"] == "mapped"
        gdb.run("disconnect")
    session.connect()


def test_kgdb_that_never_comes(runner: Runner) -> None:
    run = runner.run("--kgdb", "boot", "--image", "rfc-v2", "--timeout", "15", "--batch")
    assert run.returncode == 125
    assert "the guest was not in kgdb in time" in run.stderr
    assert "CONFIG_KGDB_SERIAL_CONSOLE" in run.stderr
    assert not runner.processes()


def test_runner(runner: Runner) -> None:
    run = runner.run("--kgdb", "--encryption", "sme", "--batch", "-ex", "sme cr3")
    assert run.returncode == 0, run.stderr
    assert "this target gives no CR3" in run.stdout
    assert not runner.processes()


def test_early_kgdb() -> None:
    """From setup_arch on, before init_mem_mapping: on early_top_pgt, and nothing may fault."""
    with KgdbSession(machine_config("kgdb-6.1", "sme", memory="256M"), When.EARLY) as session:
        gdb = session.gdb
        before = gdb.evaluate("next_early_pgt")
        status = shown(gdb, "sme status")
        assert status["stage"] == "early"
        assert status["cpus"][0]["kernels_table"]["name"] == "early_top_pgt"
        kernel = walk(gdb, "&early_top_pgt")
        assert kernel["outcome"] == "mapped"
        table = gdb.evaluate("(long)&early_top_pgt - 0xffffffff80000000")
        assert int(kernel["root"]["pa"], 16) == table
        gdb.execute("sme pte page_offset_base+0x2000000")
        gdb.execute("sme cr3")
        assert gdb.evaluate("next_early_pgt") == before
        # kgdb itself sets debug registers here, and they work.
        assert "swallows" not in gdb.execute("hbreak init_mem_mapping")
        assert "init_mem_mapping" in gdb.execute("continue", timeout=120)


def test_old_names(boot: OwnSessions) -> None:
    """The check that the project is named after, on a kernel with that name."""
    session = boot("kgdb-6.1:old-names", "sme", until="x86_64_start_kernel", memory="256M")
    report = shown(session.gdb, "sme cr3 --expect early_level4_pgt")
    assert report["passed"]
    assert report["cpus"][0]["conclusion"] == "CR3 == __sme_pa(early_level4_pgt)"
    table = session.gdb.evaluate("(long)&early_level4_pgt - 0xffffffff80000000")
    assert session.gdb.evaluate("$cr3") == table | 1 << C_BIT
    assert session.gdb.run("print &early_top_pgt").failed
    session.gdb.execute("set var $cr3 = $cr3 & ~(1ULL << 47)")
    failed = session.gdb.run("sme cr3 --expect early_level4_pgt")
    assert failed.error is not None
    assert "the C-bit is missing" in failed.output


@pytest.mark.parametrize("mode", ["pti", "la57"])
def test_other_tables(mode: str) -> None:
    """Page-table isolation's pair, and 5 levels: the walk is the one from the real CR3."""
    config = machine_config(
        "kgdb-6.1",
        "sme",
        memory="256M",
        la57=mode == "la57",
        append="pti=on" if mode == "pti" else "",
    )
    with KgdbSession(config) as session:
        va = session.gdb.evaluate(f"{TASK}->mm->start_stack")
        status = shown(session.gdb, "sme status")
        over_kgdb = walk(session.gdb, f"{va:#x}")
        known = status["cpus"][0]["kernels_table"]
        user_half = int(known["pa"], 16) | 0x1000
        pair = shown(session.gdb, f"sme pte {va:#x} --root {user_half | 1 << C_BIT:#x}")
        session.stop_by_qemu()
        over_stub = walk(session.stub, f"{va:#x}")
        cr3 = session.stub.evaluate("$cr3")
    assert over_kgdb == over_stub
    assert over_kgdb["outcome"] == "mapped"
    assert int(known["pa"], 16) == cr3 & ~0xFFF & ~(1 << C_BIT)
    isolated = f"user half of page-table isolation at {user_half:#x}"
    assert (isolated in known["detail"]) == (mode == "pti")
    assert len(over_kgdb["levels"]) == status["levels"] == (5 if mode == "la57" else 4)
    if mode == "pti":
        assert pair["pa"] == over_kgdb["pa"]

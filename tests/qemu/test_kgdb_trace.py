# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme trace` over kgdb: what it sees is so by QEMU's stub, and nothing of it stays in the guest.

The order of the moments is that of arch/x86/kernel/setup.c and init/main.c, 6.1 and 6.12.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.gdb import Gdb
from gdb_sme.harness.kgdb import KgdbSession, When, enter_kgdb
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.conftest import Runner
from tests.qemu.kgdb import IMAGES, MASK, error_of, kgdb_session, over, shown
from tests.qemu.serial_line import SerialLine

OLD_NAMES = "kgdb-6.1:old-names"
DEADLINE = 120.0
INT3 = 0xCC
NOT_SEEN = "not seen over kgdb"


@contextmanager
def by_qemu(session: KgdbSession) -> Iterator[Gdb]:
    """QEMU's stub, with the guest stopped under kgdb's feet."""
    session.stop_by_qemu()
    try:
        yield session.stub
    finally:
        session.resume_by_qemu()


def moments(said: dict[str, Any]) -> list[str]:
    return [event["name"] for event in said["events"] if event["kind"] == "moment"]


def rules(said: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["rule"]: (each["outcome"], each["text"]) for each in said["verdicts"]}


def tables(said: dict[str, Any]) -> dict[str, dict[int, int]]:
    """The tables as they must be after all changes that were recorded."""
    found: dict[str, dict[int, int]] = {}
    for event in said["events"]:
        if event["kind"] == "table":
            table = found.setdefault(event["of"], {})
            for entry in event["entries"]:
                assert table.get(entry["index"], int(entry["before"], 16)) == int(
                    entry["before"], 16
                )
                table[entry["index"]] = int(entry["after"], 16)
    return found


def table_in_guest(stub: Gdb, name: str) -> dict[int, int]:
    """The entries of a table, by QEMU."""
    stub.execute("set print elements 0")
    text = stub.execute(f"output/x *(unsigned long (*)[512]) &{name}")
    entries: list[int] = []
    for value, repeats in re.findall(r"(0x[0-9a-f]+)(?: <repeats (\d+) times>)?", text):
        entries += [int(value, 16)] * int(repeats or 1)
    assert len(entries) == 512
    return dict(enumerate(entries))


def present(table: dict[int, int]) -> dict[int, int]:
    """What is present; marks that the CPU sets at any time are left out."""
    marks = 1 << 5 | 1 << 6
    return {index: entry & ~marks for index, entry in table.items() if entry & 1}


def int3s(session: KgdbSession, directory: Path) -> set[str]:
    """Functions of the guest that begin with an int3 which vmlinux does not have, by QEMU."""
    vmlinux = session.machine.config.image.vmlinux
    assert vmlinux is not None
    listed = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True).stdout
    words = [line.split() for line in listed.splitlines()]
    functions = {int(at, 16): name for at, kind, name in words if kind in "tT"}
    found = set()
    with by_qemu(session) as stub:
        start, end = stub.evaluate("(long)&_text"), stub.evaluate("(long)&_etext")
        code = []
        for trusted in ("off", "on"):  # the guest's, then the file's
            stub.execute(f"set trust-readonly-sections {trusted}")
            stub.execute(f"dump binary memory {directory / trusted} {start} {end}")
            code.append((directory / trusted).read_bytes())
        stub.execute("set trust-readonly-sections off")
    guest, linked = code
    for at, name in functions.items():
        if start <= at < end and guest[at - start] == INT3 != linked[at - start]:
            found.add(name)
    return found


def int3s_at_shell(session: KgdbSession, directory: Path) -> set[str]:
    """Let the kernel run on to its shell, look there, and stop it again."""
    going = session.gdb.begin("continue")
    session.machine.console.wait_for(session.machine.config.image.shell_marker, DEADLINE)
    left = int3s(session, directory)
    enter_kgdb(session.machine)
    going.result()
    return left


@pytest.mark.parametrize("image", [*IMAGES, OLD_NAMES])
def test_timeline(image: str, tmp_path: Path) -> None:
    early = "early_level4_pgt" if image == OLD_NAMES else "early_top_pgt"
    init = "init_level4_pgt" if image == OLD_NAMES else "init_top_pgt"
    with kgdb_session(image, When.EARLY) as session:
        gdb = session.gdb
        said_first = gdb.execute("sme trace start --quiet")
        for what in ("no CR3", "no watchpoints", "no early page faults", "what came before"):
            assert what in said_first
        begun = shown(gdb, "sme trace show")
        with by_qemu(session) as stub:
            values = {
                name: stub.evaluate(name)
                for name in ("sme_me_mask", "early_pmd_flags", "physical_mask", "cc_mask")
            }
            taken = stub.evaluate("next_early_pgt")
            names = [early, init, "level3_kernel_pgt", "level2_kernel_pgt", "level2_fixmap_pgt"]
            names += [f"early_dynamic_pgts[{page}]" for page in range(taken)]
            found = {name: table_in_guest(stub, name) for name in names}
        assert taken > 0
        first = begun["events"][0]
        assert first["kind"] == "begin"
        assert {name: int(first["values"][name], 16) for name in values} == values
        assert values["sme_me_mask"] == MASK
        assert {name: present(table) for name, table in tables(begun).items()} == {
            name: present(table) for name, table in found.items()
        }

        ended = gdb.execute("continue", DEADLINE)
        assert "the trace ended at rest_init; all breakpoints are removed; the machine" in ended
        assert gdb.execute("info symbol $pc").startswith("rest_init")
        said = shown(gdb, "sme trace check")
        with by_qemu(session) as stub:
            cr3 = stub.evaluate("$cr3")
            last = {name: table_in_guest(stub, name) for name in (init, "level2_kernel_pgt")}
        assert int3s(session, tmp_path) == set()
        left = int3s_at_shell(session, tmp_path)

    assert left == set()
    assert said["state"] == "ended at rest_init; all breakpoints are removed"
    assert (said["complete"], said["passed"]) == (False, True)
    assert moments(said) == [
        "cleanup_highmap",
        "init_mem_mapping",
        f"{init} takes over",
        "paging_init",
        "trap_init",
        "set_memory_decrypted",  # swiotlb, or the VGA console's memory
        "mem_encrypt_init",
        "set_memory_decrypted",
        "rest_init",
    ]
    (load,) = (event for event in said["events"] if event["kind"] == "cr3")
    assert (load["target"], int(load["value"], 16), load["c_bit"]) == (init, cr3, True)
    assert load["function"].startswith("init_mem_mapping+")
    for event in said["events"]:
        assert event["cr3"] is None
        assert event["table"] == (early if event["number"] <= load["number"] + 1 else init)
        assert int(event["sme_me_mask"], 16) == MASK
        assert event["source"]
    recorded = tables(said)
    for name, table in last.items():
        assert present({**found[name], **recorded[name]}) == present(table)
    outcomes = rules(said)
    assert outcomes.pop("protection-map")[0] == "ok"
    assert set(outcomes) == {"early-pmd-flags", "cr3", "early-tables", "refused-fault"}
    for outcome, text in outcomes.values():
        assert outcome == "open"
        assert NOT_SEEN in text


def test_no_int3_where_kgdb_needs_the_code() -> None:
    with kgdb_session("kgdb-6.12", When.EARLY) as session:
        for place in ("__early_make_pgtable", "do_early_exception", "exc_int3", "fixup_exception"):
            error = error_of(session.gdb, f"sme trace start --until {place}")
            assert "the end of the machine" in error
        assert "no trace" in error_of(session.gdb, "sme trace show")


def test_moved_by_kaslr() -> None:
    """With gdb's symbols at their link addresses."""
    with kgdb_session("kgdb-6.12", When.EARLY, kaslr=True) as session:
        gdb = session.gdb
        moved = int(shown(gdb, "sme status")["kernel"]["koff"], 16)
        gdb.execute("sme trace start --quiet --until paging_init")
        gdb.execute("continue", DEADLINE)
        said = shown(gdb, "sme trace check")
        with by_qemu(session) as stub:
            cr3 = stub.evaluate("$cr3")
    assert moved
    assert moments(said) == [
        "cleanup_highmap", "init_mem_mapping", "init_top_pgt takes over", "paging_init"
    ]  # fmt: skip
    (load,) = (event for event in said["events"] if event["kind"] == "cr3")
    assert int(load["value"], 16) == cr3
    assert load["function"].startswith("init_mem_mapping+")


def test_runner(runner: Runner) -> None:
    words = ["--kgdb", "early", "--image", "kgdb-6.1", "--encryption", "sme", "--trace", "--batch"]
    commands = ["-ex", "continue", "-ex", "sme trace check"]
    run = runner.run(*words, *commands)
    assert run.returncode == 0, run.stderr
    assert "the trace begins" in run.stdout
    assert "init_top_pgt takes over" in run.stdout
    assert "trace ended at rest_init; all breakpoints are removed" in run.stdout
    assert not runner.processes()


def fault_at(session: KgdbSession, place: str, *commands: str) -> dict[str, Any]:
    """Trace from setup_arch on; at ``place`` the stub runs ``commands``, then on to rest_init."""
    gdb = session.gdb
    gdb.execute("sme trace start --quiet")
    gdb.execute(f"break *{place}")
    gdb.execute("continue", DEADLINE)
    with by_qemu(session) as stub:
        for command in commands:
            stub.execute(command)
    gdb.execute("continue", DEADLINE)
    said = shown(gdb, "sme trace show")
    assert not said["passed"]
    return said


def between(said: dict[str, Any], event: dict[str, Any]) -> tuple[str, str]:
    """The moments before and after which a change was made."""
    since = said["events"][event["since"] - 1]
    noticed = next(each for each in said["events"][event["number"] :] if each["kind"] == "moment")
    return since["name"], noticed["name"]


def test_a_mask_that_is_lost_between_two_stops() -> None:
    with kgdb_session("kgdb-6.1", When.EARLY) as session:
        said = fault_at(session, "paging_init", "set var sme_me_mask = 0")
        error = error_of(session.gdb, "sme trace check")
    (write,) = (event for event in said["events"] if event["kind"] == "write")
    assert (write["name"], write["noticed"]) == ("sme_me_mask", True)
    assert (int(write["old"], 16), int(write["new"], 16)) == (MASK, 0)
    assert between(said, write) == ("paging_init", "trap_init")
    outcome, text = rules(said)["sme-me-mask"]
    assert outcome == "FAIL"
    assert text.endswith(f"between #{write['since']} and #{write['number']}")
    assert text in error


def test_entries_that_lose_their_c_bit_between_two_stops() -> None:
    bit = f"~(1UL << {MASK.bit_length() - 1})"
    pmd = "level2_fixmap_pgt[507]"
    with kgdb_session("kgdb-6.12", When.EARLY) as session:
        said = fault_at(
            session,
            "cleanup_highmap",
            f"set var early_pmd_flags = early_pmd_flags & {bit}",
            f"set var *(unsigned long *) &{pmd} = *(unsigned long *) &{pmd} & {bit}",
            f"set var *(unsigned long *) &protection_map[3] &= {bit}",
        )
    changes = [event for event in said["events"] if event["kind"] == "table" and event["since"]]
    lost, faulted = (event for event in changes if event["without_mask"])
    assert (lost["of"], lost["without_mask"]) == ("level2_fixmap_pgt", [507])
    writes = {event["name"]: event for event in said["events"] if event["kind"] == "write"}
    assert set(writes) == {"early_pmd_flags", "protection_map[3]"}
    for event in (lost, *writes.values()):
        assert between(said, event) == ("cleanup_highmap", "init_mem_mapping")
    # The hazard of the review: an early fault that maps while early_pmd_flags lacks the mask.
    assert faulted["of"] == "early_dynamic_pgts[1]"
    assert between(said, faulted) == ("init_mem_mapping", "init_top_pgt takes over")
    texts = [each["text"] for each in said["verdicts"] if each["rule"] == "early-tables"]
    assert "was written without the C-bit" in texts[1]
    found = {**rules(said), "early-tables": ("FAIL", texts[0])}
    assert "level2_fixmap_pgt[507]" in found["early-tables"][1]
    assert f"lost its C-bit between #{lost['since']} and" in found["early-tables"][1]
    assert found["early-pmd-flags"][0] == "HAZARD"
    assert "lost the mask" in found["early-pmd-flags"][1]
    assert found["protection-map"][0] == "FAIL"


def test_faults_that_are_there_when_it_begins() -> None:
    bit = f"~(1UL << {MASK.bit_length() - 1})"
    with kgdb_session("kgdb-6.1", When.EARLY) as session:
        with by_qemu(session) as stub:
            for what in ("early_pmd_flags", "level3_kernel_pgt[511]", "protection_map[1]"):
                stub.execute(f"set var *(unsigned long *) &{what} &= {bit}")
        session.gdb.execute("sme trace start --quiet")
        said = shown(session.gdb, "sme trace show")
    found = rules(said)
    assert {rule: outcome for rule, (outcome, _) in found.items()} == {
        "early-pmd-flags": "HAZARD",
        "early-tables": "FAIL",
        "protection-map": "FAIL",
        "cr3": "open",
        "refused-fault": "open",
    }
    assert "level3_kernel_pgt[511]" in found["early-tables"][1]
    assert "when the trace began" in found["early-tables"][1]
    assert "1 of 16 entries" in found["protection-map"][1]


def test_cr3_loaded_without_the_c_bit() -> None:
    """The register of the load is what is judged: it is changed right before the instruction."""
    with kgdb_session("kgdb-6.1", When.EARLY) as session:
        gdb = session.gdb
        code = re.findall(r"(0x[0-9a-f]+) <.*:\t(.*)", gdb.execute("disassemble init_mem_mapping"))
        load = next(n for n, (_, text) in enumerate(code) if text.endswith(",%cr3"))
        (or_mask, _), (load_cr3, text) = code[load - 1 : load + 1]
        register = text.split("%")[1].rstrip(",")
        gdb.execute("sme trace start --quiet --until paging_init")
        gdb.execute("break *paging_init")
        gdb.execute(f"break *{or_mask}")
        gdb.execute("continue", DEADLINE)
        assert not gdb.evaluate(f"${register}") & MASK
        gdb.execute(f"set var $pc = {load_cr3}")  # as if the mask had been forgotten
        gdb.execute("continue", DEADLINE)
        said = shown(gdb, "sme trace show")
        with by_qemu(session) as stub:
            cr3 = stub.evaluate("$cr3")
    assert not cr3 & MASK
    (event,) = (event for event in said["events"] if event["kind"] == "cr3")
    assert (int(event["value"], 16), event["right"]) == (cr3, False)
    assert rules(said)["cr3"][0] == "FAIL"


def test_until_the_kernel_write_protects_its_text(tmp_path: Path) -> None:
    """What was set before could not be taken back after: the trace ends there in any case."""
    with kgdb_session("kgdb-6.12", When.EARLY) as session:
        session.gdb.execute("sme trace start --quiet --until run_init_process")
        ended = session.gdb.execute("continue", DEADLINE)
        assert "the trace ended at kgdb_free_init_mem: " in ended
        said = shown(session.gdb, "sme trace show")
        left = int3s_at_shell(session, tmp_path)
    assert left == set()
    assert said["state"].startswith("ended at kgdb_free_init_mem: ")
    assert moments(said)[-1] == "kgdb_free_init_mem"
    assert moments(said).count("set_memory_decrypted") > 2


CHANGERS = {"set_memory_decrypted", "set_memory_encrypted"}


@pytest.fixture(scope="module")
def late() -> Iterator[KgdbSession]:
    """A guest that its shell has sent into kgdb."""
    with kgdb_session("kgdb-6.1") as session:
        yield session


def test_started_late(late: KgdbSession, tmp_path: Path) -> None:
    """What is left of the kernel is traced, in text that is write-protected by now."""
    gdb = late.gdb
    gdb.execute("sme trace start --quiet")
    going = gdb.begin("continue")
    console = late.machine.console
    before = console.size()
    console.send("echo up-$((40 + 2))")
    console.wait_for("up-42", DEADLINE, start=before)
    assert int3s(late, tmp_path) == {"panic", *CHANGERS}
    enter_kgdb(late.machine)
    going.result()
    assert "a trace is under way" in error_of(gdb, "sme trace start")
    gdb.execute("sme trace stop")
    said = shown(gdb, "sme trace show")
    going = gdb.begin("continue")
    before = console.size()
    console.send("echo up-$((40 + 3))")
    console.wait_for("up-43", DEADLINE, start=before)
    assert int3s(late, tmp_path) == set()
    enter_kgdb(late.machine)
    going.result()
    assert moments(said) == ["kgdb is entered"]
    assert said["state"] == "stopped by hand; all breakpoints are removed"
    assert said["passed"]


def test_ctrl_c_while_the_kernel_runs(late: KgdbSession, tmp_path: Path) -> None:
    """kgdb ignores the first, and at the second gdb gives the line up: what is left is told."""
    gdb, console = late.gdb, late.machine.console
    with SerialLine(tmp_path / "line", late.machine.kgdb_socket) as line:
        over(late, line)
        gdb.execute("sme trace start --quiet")
        going = gdb.begin("continue")
        before = console.size()
        console.send("echo up-$((40 + 4))")
        console.wait_for("up-44", DEADLINE, start=before)
        gdb.interrupt()
        deadline = time.monotonic() + DEADLINE
        while b"\x03" not in line.sent:  # gdb has passed it on
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gdb.interrupt()
        output = going.result(DEADLINE).output
    said = shown(gdb, "sme trace show")
    assert int3s(late, tmp_path) == {"panic", *CHANGERS}
    assert "Exception" not in output
    for text in (output, said["state"]):
        assert "kgdb still has 3 breakpoints (int3) in the kernel, at " in text
        for name in ("panic", *CHANGERS):
            assert name in text
    enter_kgdb(late.machine)
    late.connect()
    going = gdb.begin("continue")
    before = console.size()
    console.send("echo up-$((40 + 5))")
    console.wait_for("up-45", DEADLINE, start=before)
    assert int3s(late, tmp_path) == set()
    enter_kgdb(late.machine)
    going.result()


@pytest.mark.parametrize("how", ["sme trace stop", "detach"])
def test_ctrl_c_in_the_middle(how: str, tmp_path: Path) -> None:
    """While an event is read over a slow line: it is recorded, then the machine stands."""
    with kgdb_session("kgdb-6.1", When.EARLY) as session:
        gdb = session.gdb
        reading = threading.Event()

        def slow(data: bytes) -> bytes:
            if b"c#63" in line.sent:
                time.sleep(0.01)
                # A table is being read, with the machine at the second moment.
                if line.sent.rpartition(b"c#63")[2].count(b",1f8#") and b"T05" not in data:
                    reading.set()
            return data

        with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
            over(session, line)
            gdb.execute("sme trace start --quiet")
            line.disturb = slow
            going = gdb.begin("continue")
            assert reading.wait(DEADLINE)
            gdb.interrupt()
            going.result(DEADLINE)
            line.disturb = lambda data: data
            said = shown(gdb, "sme trace show")
            assert moments(said)[-1] != "rest_init"
            assert said["state"] == "recording"
            gdb.execute(how)
            stopped = shown(gdb, "sme trace show")
            going = gdb.begin("continue") if how != "detach" else gdb.begin("echo")
            marker = session.machine.config.image.shell_marker
            session.machine.console.wait_for(marker, DEADLINE)
            left = int3s(session, tmp_path)
            if how != "detach":
                enter_kgdb(session.machine)
            going.result(DEADLINE)
    assert left == set()
    assert stopped["events"] == said["events"]
    assert "left" not in stopped["state"]


def test_the_line_is_cut(tmp_path: Path) -> None:
    """In the middle of an event: the machine waits in kgdb, and a new connection clears all."""
    with kgdb_session("kgdb-6.12", When.EARLY) as session:
        gdb = session.gdb
        with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
            over(session, line)
            gdb.execute("sme trace start --quiet")
            line.sent.clear()
            line.disturb = lambda data: data if line.sent.count(b",1f8#") < 20 else b""
            result = gdb.run("continue", DEADLINE)
        said = shown(gdb, "sme trace show")
        session.connect()
        gdb.execute("delete")
        left = int3s_at_shell(session, tmp_path)
    assert left == set()
    assert "Traceback" not in result.output
    assert said["state"].startswith("ended: the connection to the target is gone; ")
    assert "Python Exception" not in result.output
    assert result.output.count("warning: kgdb still has ") == 1
    for name in ("breakpoints (int3) in the kernel, at ", "init_mem_mapping, ", "rest_init, "):
        assert name in said["state"]


def test_a_panic(tmp_path: Path) -> None:
    with kgdb_session("kgdb-6.12") as session:
        gdb = session.gdb
        gdb.execute("sme trace start --quiet")
        going = gdb.begin("continue")
        session.machine.console.send("echo c > /proc/sysrq-trigger")
        assert "SIGTRAP" in going.result(DEADLINE).output
        said = shown(gdb, "sme trace show")
    assert moments(said) == ["panic", "kgdb is entered"]
    assert rules(said)["boot"] == ("FAIL", "the kernel gave up: sysrq triggered crash")


def test_symbols_of_another_kernel(late: KgdbSession) -> None:
    gdb, vmlinux = late.gdb, late.machine.config.image.vmlinux
    try:
        gdb.execute(f"file {machine_config('kgdb-6.12').image.vmlinux}")
        assert "is not found by the symbols' build-id" in error_of(gdb, "sme trace start")
    finally:
        gdb.execute(f"file {vmlinux}")
    assert "no_such_place" in error_of(gdb, "sme trace start --until no_such_place")
    for place in ("exc_int3", "kgdb_handle_exception", "asm_exc_debug"):
        assert "the end of the machine" in error_of(gdb, f"sme trace start --until {place}")
    assert "has freed its .init code" in error_of(gdb, "sme trace start --until start_kernel")

# SPDX-License-Identifier: GPL-2.0-or-later
"""How a trace begins and ends when things do not go as planned: nothing recorded is lost."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.gdb import Gdb
from gdb_sme.harness.pytest_plugin import OwnSessions

DEADLINE = 60.0
IMAGE = "rfc-v2:good"


def shown(session: Session) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(session.gdb.execute("sme trace show --json"))
    return said


def what(said: dict[str, Any]) -> list[tuple[object, ...]]:
    """The events without what depends on the run."""
    return [
        (event["kind"], event.get("name"), event["function"], event.get("value"), event.get("new"))
        for event in said["events"]
    ]


def breakpoints(session: Session) -> list[str]:
    """Locations of all breakpoints and watchpoints, the extension's as well."""
    listed = session.gdb.execute("maint info breakpoints")
    return re.findall(r"^-?\d+ +(?:hw |read |acc )?(?:breakpoint|watchpoint).*$", listed, re.M)


@pytest.fixture
def session(boot: OwnSessions) -> Session:
    return boot(IMAGE, "sme", memory="128M")


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """A whole trace, undisturbed."""
    from gdb_sme.harness.pytest_plugin import machine_config

    with Session(machine_config(IMAGE, "sme", "128M"), "reset") as made:
        made.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
        made.gdb.execute("hbreak cpu_startup_entry")
        made.gdb.execute("continue")
        return shown(made)


def line_of(session: Session, function: str) -> str:
    """``file:line`` where a breakpoint at ``function`` stands."""
    form = "{0.symtab.filename}:{0.line}"
    place = session.gdb.execute(
        f"python print('{form}'.format(gdb.decode_line('{function}')[1][0]))"
    )
    return place.strip()


@pytest.mark.parametrize("kind", ["symbol", "address", "line"])
def test_until(session: Session, kind: str) -> None:
    until = {
        "symbol": lambda: "start_kernel",
        "address": lambda: f"*{session.gdb.evaluate('start_kernel'):#x}",
        "line": lambda: line_of(session, "start_kernel"),
    }[kind]()
    session.gdb.execute(f"sme trace start --quiet --until {until}")
    session.gdb.execute("sme emulate off")
    session.gdb.execute("hbreak cpu_startup_entry")
    session.gdb.execute("continue")
    said = shown(session)
    assert re.match(r"ended at start_kernel(\+\d+)?; all breakpoints are removed", said["state"])
    # Beyond it much would have been recorded.
    assert said["events"][-1]["function"] != "init_mem_mapping"
    (mine,) = breakpoints(session)
    assert "cpu_startup_entry" in mine
    # The session goes on, also through places that were watched.
    assert session.gdb.evaluate("$rip") == session.gdb.evaluate("cpu_startup_entry")
    session.gdb.execute("stepi")


def test_no_such_location(session: Session) -> None:
    error = session.gdb.run("sme trace start --until no_such_thing").error
    assert error is not None
    assert re.fullmatch(r"sme trace: --until no_such_thing: .*no_such_thing.*", error)
    assert "no trace" in (session.gdb.run("sme trace show").error or "")


def test_stopped_by_hand(session: Session) -> None:
    session.gdb.execute("sme emulate off")
    session.gdb.execute("sme trace start --quiet")
    assert "under way" in (session.gdb.run("sme trace start").error or "")
    session.gdb.execute("thbreak sme_early_init")
    session.gdb.execute("continue")
    seen = len(shown(session)["events"])
    assert seen > 5
    session.gdb.execute("sme trace stop")
    said = shown(session)
    assert said["state"].startswith("stopped by hand")
    assert len(said["events"]) == seen
    assert breakpoints(session) == []


def test_started_late(session: Session, reference: dict[str, Any]) -> None:
    session.gdb.execute("thbreak sme_early_init")
    session.gdb.execute("continue")
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    session.gdb.execute("hbreak cpu_startup_entry")
    session.gdb.execute("continue")
    said = shown(session)
    assert not said["complete"]
    (note,) = (note for note in said["notes"] if "late" in note)
    assert note.startswith("started late, at stage early boot, on early_top_pgt")
    names = [(event["kind"], event.get("name")) for event in said["events"]]
    assert ("write", "early_pmd_flags") in names
    assert ("moment", "sme_enable") not in names
    faults = [event for event in said["events"] if event["kind"] == "fault"]
    assert len(faults) == len([e for e in reference["events"] if e["kind"] == "fault"]) == 3
    assert said["passed"]


def test_started_at_the_entry_misses_nothing(session: Session, reference: dict[str, Any]) -> None:
    entry = session.gdb.evaluate("startup_64") - 0xFFFFFFFF80000000
    session.gdb.execute(f"thbreak *{entry:#x}")
    session.gdb.execute("continue")
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    session.gdb.execute("hbreak cpu_startup_entry")
    session.gdb.execute("continue")
    assert shown(session)["complete"]
    assert what(shown(session)) == what(reference)


def test_symbols_missing(session: Session, tmp_path: Path) -> None:
    vmlinux = session.machine.config.image.vmlinux
    assert vmlinux is not None
    poor = tmp_path / "vmlinux"
    gone = ("early_make_pgtable", "early_pmd_flags", "protection_map", "sme_early_init")
    subprocess.run(
        ["objcopy", "--strip-debug", *(f"--strip-symbol={name}" for name in gone), vmlinux, poor],
        check=True,
    )
    session.gdb.execute(f"file {poor}")
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    session.gdb.execute("hbreak cpu_startup_entry")
    session.gdb.execute("continue")
    said = shown(session)
    assert any(note.startswith("not in this kernel: early_pmd_flags") for note in said["notes"])
    assert "no early_make_pgtable: early page faults cannot be seen" in said["notes"]
    assert [event["name"] for event in said["events"] if event["kind"] == "write"] == [
        "sme_me_mask"
    ]
    assert {each["rule"]: each["outcome"] for each in said["verdicts"]} == {
        "early-pmd-flags": "open", "cr3": "ok", "early-tables": "ok"
    }  # fmt: skip


def test_no_symbols(session: Session) -> None:
    session.gdb.execute("sme emulate off")
    session.gdb.execute("symbol-file")
    session.gdb.execute("file")
    error = session.gdb.run("sme trace start").error
    assert error is not None
    assert "file vmlinux" in error
    assert "\n" not in error


def test_watchpoints_used_up(session: Session, reference: dict[str, Any]) -> None:
    session.gdb.execute("set remote hardware-watchpoint-limit 1")
    session.gdb.execute("watch *(unsigned long *) &init_level4_pgt")
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    session.gdb.execute("hbreak cpu_startup_entry")
    session.gdb.execute("delete 1")
    session.gdb.execute("continue")
    said = shown(session)
    notes = [note for note in said["notes"] if "seen at the next event only" in note]
    assert {note.split()[2] for note in notes} >= {"early_pmd_flags"}
    writes = {(event["name"], event["new"]) for event in said["events"] if event["kind"] == "write"}
    assert writes == {
        (event["name"], event["new"]) for event in reference["events"] if event["kind"] == "write"
    }
    assert any(event["noticed"] for event in said["events"] if event["kind"] == "write")
    assert said["passed"]


def test_own_breakpoints_at_the_same_places(session: Session, reference: dict[str, Any]) -> None:
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    places = ("sme_early_init", "early_make_pgtable", "reset_early_page_tables")
    for place in (*places, "cpu_startup_entry"):
        session.gdb.execute(f"hbreak *{session.gdb.evaluate(place):#x}")
    session.gdb.execute("watch -l early_pmd_flags")
    hits = []
    while True:
        said = session.gdb.execute("continue")
        hits.append(re.search(r"(?:Breakpoint|watchpoint) (\d+)", said)[1])  # type: ignore[index]
        if hits[-1] == "4":
            break
    assert set("1235") <= set(hits)
    assert hits.count("2") == 3
    assert what(shown(session)) == what(reference)


@pytest.mark.parametrize("seed", [8, 12, 18, 39])
def test_ctrl_c_loses_nothing(boot: OwnSessions, reference: dict[str, Any], seed: int) -> None:
    session = boot(IMAGE, "sme", memory="128M")
    session.gdb.execute("sme trace start --quiet --until cpu_startup_entry")
    session.gdb.execute("hbreak cpu_startup_entry")
    chance = random.Random(seed)
    stops = 0
    while session.gdb.evaluate("$rip") != session.gdb.evaluate("cpu_startup_entry"):
        going = session.gdb.begin("continue")
        going.begun()
        time.sleep(chance.random() * 0.05)
        session.gdb.interrupt()
        result = going.result(DEADLINE)
        assert "Traceback" not in result.output
        stops += 1
        assert stops < 500
    assert what(shown(session)) == what(reference)
    assert shown(session)["notes"] == reference["notes"]


def test_panic_keeps_the_timeline(boot: OwnSessions) -> None:
    session = boot("rfc-v2:plain-compare", "sme", memory="128M")
    session.gdb.execute("sme trace start --quiet")
    with session.resumed():
        deadline = time.monotonic() + DEADLINE
        while b"Kernel panic" not in (session.machine.directory / "console.log").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    said = shown(session)
    assert said["events"][-1]["name"] == "panic"
    assert said["events"][-1]["detail"] == "early exception"
    assert [each["rule"] for each in said["verdicts"] if each["outcome"] == "FAIL"] == [
        "refused-fault", "boot"
    ]  # fmt: skip


def test_reset_ends_the_trace_and_keeps_it(boot: OwnSessions) -> None:
    session = boot(IMAGE, "sme", memory="128M", qemu_args=("-action", "reboot=reset"))
    session.gdb.execute("sme emulate off")
    session.gdb.execute("sme trace start --quiet")
    session.gdb.execute("thbreak start_kernel")
    session.gdb.execute("continue")
    seen = what(shown(session))
    session.gdb.execute("monitor system_reset")
    session.gdb.execute("hbreak start_kernel")
    session.gdb.execute("continue")
    said = shown(session)
    assert said["state"].startswith("ended: the guest was reset")
    assert what(said)[: len(seen)] == seen
    assert len(breakpoints(session)) == 1
    session.gdb.execute("sme trace start --quiet")  # and another can begin


@pytest.mark.parametrize("running", [True, False])
def test_connection_breaks(boot: OwnSessions, running: bool) -> None:
    session = boot(IMAGE, "sme", memory="128M")
    session.gdb.execute("sme trace start --quiet")
    session.gdb.execute("thbreak start_kernel")
    session.gdb.execute("continue")
    seen = what(shown(session))
    going = session.gdb.begin("continue") if running else None
    os.kill(session.machine.pid, signal.SIGKILL)
    if going is not None:
        assert "Traceback" not in going.result(DEADLINE).output
    else:
        session.gdb.run("continue")
    said = shown(session)
    assert what(said)[: len(seen)] == seen
    assert said["state"].startswith("ended: the connection to the target is gone")
    assert session.gdb.run("sme trace check").error is None
    assert "Traceback" not in session.gdb.run("sme trace start").output


def quits(session: Session) -> int | None:
    """Signal that killed gdb when it was told to quit, None when it ended by itself."""
    session.gdb.child.sendline("quit")
    deadline = time.monotonic() + DEADLINE
    while session.gdb.child.isalive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return session.gdb.child.signalstatus


@pytest.mark.parametrize("when", ["armed", "recording", "ended in a stop"])
def test_gdb_leaves_in_peace(session: Session, when: str) -> None:
    session.gdb.execute("sme trace start --quiet --until start_kernel")
    if when != "armed":
        place = "sme_early_init" if when == "recording" else "start_kernel"
        session.gdb.execute(f"hbreak *{session.gdb.evaluate(place):#x}")
        session.gdb.execute("continue")
    assert quits(session) is None
    assert session.gdb.child.exitstatus == 0


def test_gdb_without_a_target() -> None:
    from gdb_sme.harness.gdb import PLUGIN

    with Gdb() as gdb:
        gdb.execute(f"source {PLUGIN}")
        assert gdb.run("sme trace show").error == (
            "sme trace: no trace; at reset, begin one with: sme trace start"
        )
        error = gdb.run("sme trace start").error
        assert error is not None
        assert error.startswith("sme trace: no target; connect first")
        assert "--until goes with start" in (gdb.run("sme trace show --until x").error or "")

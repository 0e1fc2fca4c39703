# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial line to kgdb: slow, cut, disturbed, with nobody at its end."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.kgdb import KgdbSession
from tests.qemu.kgdb import IMAGES, TASK, error_of, kgdb_session, over, shown, walk
from tests.qemu.serial_line import SerialLine


@pytest.fixture(scope="module", params=IMAGES)
def session(request: pytest.FixtureRequest) -> Iterator[KgdbSession]:
    """A guest that its shell has sent into kgdb; each test leaves gdb on its line."""
    with kgdb_session(request.param) as made:
        yield made


def packet(text: str) -> bytes:
    """A packet of the remote protocol."""
    return f"+${text}#{sum(text.encode()) & 0xFF:02x}".encode()


def test_eight_bytes_a_level(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    va = gdb.evaluate(f"{TASK}->mm->start_stack")
    base = gdb.evaluate("page_offset_base")
    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        gdb.execute("sme status")
        line.sent.clear()
        levels = walk(gdb, f"{va:#x}")["levels"]
        asked = line.reads()
        line.sent.clear()
        assert walk(gdb, f"{va:#x}")["levels"] == levels
        assert line.reads() == []
        gdb.run("disconnect")
    session.connect()
    assert {length for _, length in asked} == {8}
    entries = [int(level["entry_pa"], 16) for level in levels]
    assert [base + pa for pa in entries] == [read for read, _ in asked][: len(entries)]
    assert len(asked) < 4 + len(entries)


def test_nothing_is_read_twice_at_one_stop(session: KgdbSession, tmp_path: Path) -> None:
    """All commands in a row; the witness is what went over the line."""
    gdb = session.gdb
    commands = ["sme status", "sme pte $sp", "sme cr3", "sme pte &init_top_pgt", "sme dump"]
    commands += ["sme audit", "sme find --conflicts", "sme find 0x1000000", "sme status"]
    commands += [f"sme report {tmp_path / 'report.txt'}", "sme snapshot here", "sme dump --user 1"]
    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        line.sent.clear()
        for command in commands:
            gdb.execute(command, timeout=300)
        asked = line.reads()
        gdb.execute("stepi")
        line.sent.clear()
        gdb.execute("sme status")
        anew = line.reads()
        gdb.run("disconnect")
    session.connect()
    words = Counter(word for va, length in asked for word in range(va & ~7, va + length, 8))
    assert len(words) > 90 * 512  # every table of the guest
    assert [hex(word) for word, times in words.items() if times > 1] == []
    assert {va for va, _ in anew} & set(words)  # at another stop all may have changed


def test_line_cut_in_the_middle_of_a_command(session: KgdbSession, tmp_path: Path) -> None:
    gdb = session.gdb
    va = gdb.evaluate(f"{TASK}->mm->start_stack")
    before = walk(gdb, f"{va:#x}")
    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        blocks = iter(range(1000))
        line.disturb = lambda data: data if next(blocks) < 8 else b""
        error = error_of(gdb, f"sme pte {va:#x}")
        assert re.search("connection|went away|closed", error), error
    assert "no target; connect first" in error_of(gdb, "sme status")
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
            assert re.match("sme status: ", error_of(gdb, "sme status"))
        line.disturb = lambda data: data
        gdb.run("disconnect")
    session.connect()
    assert shown(gdb, "sme status")["active"]


def test_page_offset_base_that_cannot_be_read(session: KgdbSession, tmp_path: Path) -> None:
    """KASLR may have moved the direct map: no usual value is taken for it."""
    gdb = session.gdb
    at = gdb.evaluate("(long)&page_offset_base")
    before = walk(gdb, "$sp")
    held, refused = bytearray(), 0

    def refuse(data: bytes) -> bytes:
        nonlocal refused
        if not line.sent.rpartition(b"$")[2].startswith(b"m%x,8#" % at):
            return data
        held.extend(data)
        if not re.search(rb"\$.*#..", held):
            return b"+"  # not all of the reply yet; this is of no consequence
        held.clear()
        refused += 1
        return packet("E14")

    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        line.disturb = refuse
        for command in ("sme pte $sp", "sme status", "sme audit", "sme dump"):
            error = error_of(gdb, command)
            assert "page_offset_base cannot be read" in error
            assert f"{at:#x}" in error
        line.disturb = lambda data: data
        assert refused
        gdb.run("disconnect")
    session.connect()
    assert walk(gdb, "$sp") == before


def test_interrupted_dump(session: KgdbSession, tmp_path: Path) -> None:
    """It shows where it is on a slow line; Ctrl-C ends the command, not the session."""
    gdb = session.gdb
    before = walk(gdb, "$sp")
    under_way, begun = threading.Event(), 0.0

    def slow(data: bytes) -> bytes:
        nonlocal begun
        time.sleep(0.01)
        if not begun and b",1f8#" in line.sent:  # a part of a table
            begun = time.monotonic()
        if begun and time.monotonic() > begun + 2:
            under_way.set()
        return data

    with SerialLine(tmp_path / "line", session.machine.kgdb_socket) as line:
        over(session, line)
        line.disturb = slow
        pending = gdb.begin("sme dump")
        assert under_way.wait(60)
        gdb.interrupt()
        result = pending.result()
        assert result.error == "Quit"
        assert re.match("(sme dump: at 0x[0-9a-f]+ *)+ +", result.output)  # and taken away
        assert "virtual" not in result.output
        line.disturb = lambda data: data
        assert walk(gdb, "$sp") == before
        assert gdb.execute("info breakpoints").startswith("No breakpoints")
        # What the first one has read is used by the second.
        assert shown(gdb, "sme dump")["troubles"] == []
        gdb.run("disconnect")
    session.connect()


def test_nobody_at_the_other_end(tmp_path: Path) -> None:
    with SerialLine(tmp_path / "line", None) as line, Gdb() as gdb:
        gdb.execute(f"source {PLUGIN}")
        gdb.execute("set remotetimeout 1")
        assert gdb.run(f"target remote {line.path}").failed
        assert line.sent  # it has asked
        assert "no target; connect first" in error_of(gdb, "sme status")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for text on a serial console, on a file that grows as QEMU's log does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gdb_sme.errors import TargetError
from gdb_sme.harness.console import Console, GuestFailure, find_failure

PANIC = "[    2.0] Kernel panic - not syncing: VFS: Unable to mount root fs"
END = "[    2.1] ---[ end Kernel panic - not syncing: VFS ]---"


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path / "console.log", tmp_path / "console.sock")


@pytest.mark.parametrize(
    "line",
    [
        PANIC,
        "[    0.0] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "PANIC: early exception 0x0e IP 10:ffffffff81000000 error 0 cr2 0xffff888000000000",
        " -- System halted",
    ],
)
def test_the_lines_of_a_failure_are_found(line: str) -> None:
    text = f"booting\n{line}\n" + "".join(f"more {n}\n" for n in range(20))
    lines = find_failure(text)
    assert lines[0] == line
    assert lines[1:] == tuple(f"more {n}" for n in range(11))


def test_a_boot_without_failure_has_none() -> None:
    assert find_failure("Linux version 6.1\npanic=1 on the command line\n") == ()


def test_text_is_read_from_a_position_and_without_carriage_returns(console: Console) -> None:
    assert (console.text(), console.size()) == ("", 0)
    console.log.write_bytes(b"one\r\n")
    start = console.size()
    with console.log.open("ab") as log:
        log.write(b"two\r\n\xff\n")
    assert console.text() == "one\ntwo\n\ufffd\n"
    assert console.text(start) == "two\n\ufffd\n"


def test_waiting_ends_when_the_text_is_there(console: Console) -> None:
    console.log.write_text("boot\n")
    writer = threading.Timer(0.1, lambda: console.log.write_text("boot\nup\n"))
    writer.start()
    assert console.wait_for("up", 60.0) == "boot\nup\n"
    writer.join()


def test_waiting_ends_at_a_panic(console: Console) -> None:
    console.log.write_text(f"boot\n{PANIC}\n{END}\n")
    with pytest.raises(GuestFailure) as caught:
        console.wait_for("up", 60.0)
    assert caught.value.lines == (PANIC, END)
    assert "Unable to mount root fs" in str(caught.value)


def test_an_old_panic_is_not_met_again(console: Console) -> None:
    console.log.write_text(f"{PANIC}\n{END}\n")
    start = console.size()
    console.check(start)
    with pytest.raises(GuestFailure):
        console.check()


def test_waiting_has_a_deadline(console: Console) -> None:
    with pytest.raises(TargetError, match=r"'up' was not on the console within 0\.1 s"):
        console.wait_for("up", 0.1)


def test_waiting_ends_with_qemu(console: Console) -> None:
    with pytest.raises(TargetError, match="QEMU ended before 'up' was on the console"):
        console.wait_for("up", 60.0, alive=lambda: False)


def test_what_qemu_printed_last_still_counts(console: Console) -> None:
    console.log.write_text("up\n")
    assert console.wait_for("up", 60.0, alive=lambda: False) == "up\n"


def test_typing_without_qemu_is_an_error(console: Console) -> None:
    with pytest.raises(TargetError, match="cannot type on the console"):
        console.send("ls")

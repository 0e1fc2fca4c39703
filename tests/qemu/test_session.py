# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb and QEMU as tests get them: ``Gdb``, ``Qmp``, ``Console``, and the fixtures' sessions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.errors import BootError, TargetError
from gdb_sme.harness.boot import Session
from gdb_sme.harness.console import GuestFailure
from gdb_sme.harness.gdb import Gdb, Result
from gdb_sme.harness.layout import memory_layout
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions, machine_config
from gdb_sme.harness.qmp import QmpError


@pytest.fixture(scope="module")
def bare() -> Iterator[Gdb]:
    """A gdb without a target."""
    with Gdb() as gdb:
        yield gdb


def test_a_command_gives_its_output(bare: Gdb) -> None:
    assert bare.run("echo one\\ntwo\\n") == Result("one\ntwo\n", None)
    assert bare.run("echo no newline") == Result("no newline", None)
    assert bare.run("set $a = 1") == Result("", None)


def test_a_failed_command_gives_its_error_apart(bare: Gdb) -> None:
    result = bare.run("print no_such_symbol")
    assert result.failed
    assert result.output == ""
    assert result.error == 'No symbol table is loaded.  Use the "file" command.'
    with pytest.raises(TargetError, match="gdb command `print nothing` failed: No symbol"):
        bare.execute("print nothing")


def test_text_that_looks_like_a_prompt_or_a_mark_is_output(bare: Gdb) -> None:
    text = "(gdb) ok:end:null\n(gdb) \n"
    assert bare.run(f"python print({text!r}, end='')").output == text


def test_output_of_any_length_is_whole(bare: Gdb) -> None:
    output = bare.run("python print('x' * 300 + '\\n' + 'y' * 1000000)").output
    assert output == "x" * 300 + "\n" + "y" * 1000000 + "\n"


def test_quotes_and_backslashes_reach_gdb(bare: Gdb) -> None:
    assert bare.run("""python print("a'b", r'c"d\\e')""").output == "a'b c\"d\\e\n"


def test_integers_are_64_bits_unsigned(bare: Gdb) -> None:
    assert bare.evaluate("-1") == 0xFFFFFFFFFFFFFFFF
    assert bare.evaluate("1ULL << 51") == 1 << 51


def test_a_command_can_be_interrupted(bare: Gdb, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    # Neither a file that is closed on the way nor one long sleep: Ctrl-C could be lost in them.
    forever = "any(time.sleep(0.01) for _ in iter(int, 1))"
    pending = bare.begin(f"python import os, time; os.mkdir({str(begun)!r}); {forever}")
    while not begun.exists():
        assert bare.running()
    bare.interrupt()
    assert pending.result().error == "Error while executing Python code."
    assert bare.run("echo alive") == Result("alive", None)


def test_a_deadline_names_the_command() -> None:
    with Gdb() as gdb:
        with pytest.raises(TargetError, match=r"`python .*sleep.*` did not finish within 0\.5 s"):
            gdb.run("python import time; time.sleep(1000)", timeout=0.5)
        pid = gdb.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_gdb_that_ends_is_named() -> None:
    with Gdb() as gdb:
        with pytest.raises(TargetError, match="gdb command `quit` ended gdb"):
            gdb.run("quit")
        assert not gdb.running()


def test_a_session_stands_at_its_stop_with_everything_at_hand(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    machine = session.machine
    assert not machine.qmp.running()
    assert session.gdb.evaluate("sme_me_mask") == 1 << 47
    assert "Memory Encryption Features active: AMD SME" in machine.console.text()
    assert session.gdb.evaluate("$cr3") >> 43 << 43 == 1 << 47
    # The banner in the file behind guest RAM, found through gdb's own symbols.
    banner = session.gdb.evaluate("(unsigned long)&linux_banner") - 0xFFFFFFFF80000000
    (low,) = memory_layout(machine.config).parts
    found = os.pread(machine.ram_fd, 17, low.offset + banner + session.gdb.evaluate("phys_base"))
    assert found == b"Linux version 6.1"


def test_a_configuration_is_booted_once(booted: SharedSessions) -> None:
    first = booted("debian-6.1", "sme", until="shell")
    assert booted("debian-6.1", "sme", until="shell") is first
    assert booted("rfc-v2", until="reset") is not first


def test_a_session_that_has_died_is_booted_anew() -> None:
    sessions = SharedSessions()
    try:
        first = sessions("rfc-v2")
        os.kill(first.machine.pid, signal.SIGKILL)
        first.machine.process.wait()
        second = sessions("rfc-v2")
        assert second is not first
        assert second.alive()
        assert not first.machine.directory.exists()
    finally:
        sessions.close()
    assert not second.alive()


def test_few_machines_are_kept() -> None:
    sessions = SharedSessions()
    try:
        opened = [sessions("rfc-v2", smp=smp) for smp in (1, 2, 3, 4)]
        assert [session.alive() for session in opened] == [False, True, True, True]
    finally:
        sessions.close()


def test_the_guests_shell_can_be_used_between_two_looks(boot: OwnSessions) -> None:
    session = boot("debian-6.1", until="shell")
    before = session.gdb.evaluate("jiffies_64")
    assert session.shell("echo $((6 * 7))").strip().endswith("42")
    assert not session.machine.qmp.running()
    assert session.gdb.evaluate("jiffies_64") > before
    with pytest.raises(TargetError, match="`false` failed in the guest with status 1"):
        session.shell("false")
    assert session.gdb.run("print 1") == Result("$1 = 1\n", None)


def test_a_panic_in_the_guest_is_an_error_at_once(boot: OwnSessions) -> None:
    session = boot("debian-6.1", until="shell")
    with pytest.raises(GuestFailure, match="sysrq triggered crash"):
        session.shell("echo c > /proc/sysrq-trigger")
    assert not session.machine.qmp.running()


def test_qemu_gone_is_an_error_everywhere(boot: OwnSessions) -> None:
    session = boot("rfc-v2")
    os.kill(session.machine.pid, signal.SIGKILL)
    assert session.machine.ended(60)
    with pytest.raises(QmpError, match="QEMU is gone"):
        session.machine.qmp.running()
    with pytest.raises(BootError, match="QEMU ended: killed by signal 9"):
        session.machine.stop()
    assert not session.alive()


def test_qmp_refuses_what_qemu_refuses(boot: OwnSessions) -> None:
    session = boot("rfc-v2")
    with pytest.raises(QmpError, match="QEMU refused no-such-command: "):
        session.machine.qmp.execute("no-such-command")
    assert session.machine.qmp.hmp("info version").startswith(tuple("0123456789"))


def test_a_failed_boot_leaves_nothing(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    with pytest.raises(BootError, match="the kernel has no location no_such_function"):
        Session(machine_config("rfc-v2"), "no_such_function")
    with pytest.raises(BootError, match="1 s passed before"):
        Session(machine_config("rfc-v2"), "*0x1", timeout=1)
    assert list(short_path.iterdir()) == []


def test_closing_twice_is_harmless() -> None:
    session = Session(machine_config("rfc-v2"), "reset")
    session.close()
    session.close()
    assert not session.alive()

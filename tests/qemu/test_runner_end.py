# SPDX-License-Identifier: GPL-2.0-or-later
"""However scripts/sme-debug ends, nothing outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.qemu.conftest import DEADLINE, SCRIPTS, Runner

BOOTING = ("--image", "rfc-v2", "--until", "*0x1", "--batch", "-ex", "echo never\\n")
RUNNING = (
    *("--image", "rfc-v2", "--encryption", "sme", "--until", "shell", "--batch"),
    *("-ex", "echo there\\n", "-ex", "continue"),
)
SHM = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _nothing_in_dev_shm() -> Iterator[None]:
    before = set(SHM.iterdir())
    yield
    assert set(SHM.iterdir()) <= before


def running(runner: Runner) -> subprocess.Popen[str]:
    """A run whose guest runs, under gdb's ``continue``."""
    started = runner.start(*RUNNING)
    assert started.stdout is not None
    assert started.stdout.readline() == "there\n"
    return started


def booting(runner: Runner) -> subprocess.Popen[str]:
    """A run that has just begun, and will not reach its stop."""
    started = runner.start(*BOOTING)
    assert started.stderr is not None
    while not (line := started.stderr.readline()).startswith("sme-debug: booting"):
        assert line
    return started


@pytest.mark.parametrize("start", [booting, running])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all(
    runner: Runner, start: Callable[[Runner], subprocess.Popen[str]], number: signal.Signals
) -> None:
    started = start(runner)
    started.send_signal(number)
    _, stderr = started.communicate(timeout=DEADLINE)
    assert started.returncode == -number
    assert f"sme-debug: ended by {number.name}\n" in stderr
    assert runner.processes() == {}
    assert runner.left_behind() == []


def test_a_second_signal_does_not_disturb_the_cleaning_up(runner: Runner) -> None:
    started = running(runner)
    for _ in range(20):
        started.send_signal(signal.SIGINT)
        started.send_signal(signal.SIGTERM)
    started.communicate(timeout=DEADLINE)
    assert started.returncode in (-signal.SIGINT, -signal.SIGTERM)
    assert runner.processes() == {}
    assert runner.left_behind() == []


def test_killing_gdb_ends_all(runner: Runner) -> None:
    started = running(runner)
    os.kill(runner.pid("gdb"), signal.SIGKILL)
    _, stderr = started.communicate(timeout=DEADLINE)
    assert started.returncode == 1
    assert "sme-debug: gdb was killed by signal 9 in `" in stderr
    assert runner.processes() == {}
    assert [name[:14] for name in runner.left_behind()] == ["sme-debug-logs"]


def test_killing_gdb_while_it_boots_ends_all(runner: Runner) -> None:
    started = booting(runner)
    while "gdb" not in runner.processes().values():
        assert started.poll() is None
    os.kill(runner.pid("gdb"), signal.SIGKILL)
    _, stderr = started.communicate(timeout=DEADLINE)
    assert started.returncode == 125
    assert "sme-debug: gdb was killed by signal 9 before" in stderr
    assert runner.processes() == {}
    assert [name[:14] for name in runner.left_behind()] == ["sme-debug-logs"]


def test_killing_qemu_fails_the_command(runner: Runner) -> None:
    started = running(runner)
    os.kill(runner.pid("qemu-system-x86"), signal.SIGKILL)
    started.communicate(timeout=DEADLINE)
    assert started.returncode == 1
    assert runner.processes() == {}


def test_killing_qemu_while_it_boots_is_named(runner: Runner) -> None:
    started = booting(runner)
    while "qemu-system-x86" not in runner.processes().values():
        assert started.poll() is None
    os.kill(runner.pid("qemu-system-x86"), signal.SIGKILL)
    _, stderr = started.communicate(timeout=DEADLINE)
    assert started.returncode == 125
    assert "killed by signal 9" in stderr
    assert runner.processes() == {}


def test_killing_the_runner_leaves_no_process_and_its_directory_to_the_next_run(
    runner: Runner,
) -> None:
    started = running(runner)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate(timeout=DEADLINE)
    runner.wait_until_gone()
    (left,) = runner.left_behind()
    assert left.startswith("gdb-sme-run-")
    done = runner.run("--image", "rfc-v2", "--batch", "-ex", "echo one\\n")
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert runner.left_behind() == []


def test_what_a_command_has_started_ends_too(runner: Runner) -> None:
    done = runner.run("--image", "rfc-v2", "--batch", "-ex", "shell sleep 1000 &")
    assert done.returncode == 0
    runner.wait_until_gone()


def test_no_port_is_opened(runner: Runner) -> None:
    started = running(runner)
    inodes = {
        line.split()[9]
        for name in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    }
    for pid in runner.processes():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            assert target.removeprefix("socket:[").rstrip("]") not in inodes, target
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=DEADLINE)


@pytest.fixture
def terminal(runner: Runner) -> Iterator[pexpect.spawn[str]]:
    """An interactive run, on a terminal, stopped in start_kernel."""
    child: pexpect.spawn[str] = pexpect.spawn(
        str(SCRIPTS / "sme-debug"),
        ["--image", "debian-6.1", "--until", "start_kernel", "-ex", "echo there\\n"],
        env=runner.environment | {"TERM": "dumb"},
        encoding="utf-8",
        timeout=DEADLINE,
    )
    child.expect_exact("sme-debug: stopped at start_kernel; serial console: ")
    child.expect_exact("there\r\n")
    child.expect_exact("(gdb) ")
    yield child
    child.close(force=True)


def test_ctrl_c_at_the_prompt_goes_to_gdb_alone(
    runner: Runner, terminal: pexpect.spawn[str]
) -> None:
    terminal.sendintr()
    terminal.expect_exact("Quit\r\n(gdb) ")
    terminal.sendline("continue")
    terminal.expect_exact("Continuing.")
    terminal.sendintr()
    terminal.expect_exact("received signal SIGINT")
    terminal.expect_exact("(gdb) ")
    terminal.sendline("print 6 * 7")
    terminal.expect_exact("$1 = 42\r\n")
    terminal.sendline("quit")
    terminal.expect_exact(pexpect.EOF)
    assert terminal.wait() == 0
    assert runner.processes() == {}
    assert runner.left_behind() == []


def test_a_killed_gdb_gives_the_terminal_back(runner: Runner, terminal: pexpect.spawn[str]) -> None:
    os.kill(runner.pid("gdb"), signal.SIGKILL)
    terminal.expect_exact("gdb was killed by signal 9")
    terminal.expect_exact(pexpect.EOF)
    assert terminal.wait() == 1
    assert terminal.getecho()
    assert runner.processes() == {}


def test_closing_the_terminal_ends_all(runner: Runner, terminal: pexpect.spawn[str]) -> None:
    terminal.ptyproc.fileobj.close()  # type: ignore[attr-defined]
    runner.wait_until_gone()
    assert runner.left_behind() == []


def test_ctrl_c_while_booting_gives_the_prompt(runner: Runner) -> None:
    child: pexpect.spawn[str] = pexpect.spawn(
        str(SCRIPTS / "sme-debug"),
        ["--image", "debian-6.1", "--until", "*0x1", "-ex", "echo never\\n"],
        env=runner.environment | {"TERM": "dumb"},
        encoding="utf-8",
        timeout=DEADLINE,
    )
    child.expect_exact("in exception_stacks ()")
    console = next(runner.temporary.glob("gdb-sme-run-*")) / "console.log"
    while not console.exists() or "Linux version" not in console.read_text(errors="replace"):
        assert child.isalive()
    child.sendintr()
    child.expect_exact("sme-debug: interrupted before the kernel reached *0x1")
    child.expect_exact("(gdb) ")
    child.sendline("print 6 * 7")
    child.expect_exact("$1 = 42\r\n")
    child.sendline("quit")
    child.expect_exact(pexpect.EOF)
    assert child.wait() == 125
    assert "never" not in str(child.before)
    assert runner.processes() == {}


def test_after_a_panic_while_booting_a_person_can_look(runner: Runner) -> None:
    child: pexpect.spawn[str] = pexpect.spawn(
        str(SCRIPTS / "sme-debug"),
        [
            *("--image", "debian-6.1", "--until", "shell"),
            *("--append", "init=/nonexistent rdinit=/nonexistent"),
        ],
        env=runner.environment | {"TERM": "dumb"},
        encoding="utf-8",
        timeout=DEADLINE,
    )
    child.expect_exact("Kernel panic - not syncing")
    child.expect_exact("sme-debug: the kernel gave up")
    child.sendline("output/d panic_timeout")
    child.expect_exact("0(gdb) ")
    child.sendline("quit")
    child.expect_exact(pexpect.EOF)
    assert child.wait() == 125
    assert runner.processes() == {}

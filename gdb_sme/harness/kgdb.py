# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose own stub, kgdb, waits on its second serial port.

Two gdbs are at work. The first one, on QEMU's stub, makes the guest find its encryption and lets it
run. The second one is on the serial line, as it would be on a real machine.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from enum import StrEnum
from os import killpg

from gdb_sme.errors import BootError
from gdb_sme.harness.boot import BOOT_DEADLINE, RESET, SHELL, TICK, control_path, write_plan
from gdb_sme.harness.closing import Closing
from gdb_sme.harness.control import Control
from gdb_sme.harness.gdb import Gdb
from gdb_sme.harness.layout import MachineConfig
from gdb_sme.harness.process import tethered
from gdb_sme.harness.qemu import Machine


class When(StrEnum):
    """When the guest goes into kgdb."""

    EARLY = "early"
    BOOT = "boot"
    SHELL = "shell"


#: For the kernel's command line (Documentation/dev-tools/kgdb.rst). The early one is on the same
#: port: COM2.
_EARLY = "earlycon=uart8250,io,0x2f8,115200 kgdboc_earlycon kgdbwait"
_WORDS = {When.EARLY: _EARLY, When.BOOT: "kgdbwait", When.SHELL: ""}

#: kgdb_initial_breakpoint() in kernel/debug/debug_core.c; __handle_sysrq() in drivers/tty/sysrq.c.
_WAITING = "KGDB: Waiting for connection from remote gdb"
_SYSRQ = "sysrq: DEBUG"
_ENTER = "echo g > /proc/sysrq-trigger"


def kgdb_config(config: MachineConfig, when: When) -> MachineConfig:
    """Return ``config`` with a line for kgdb, and the words that make the kernel use it."""
    words = f"kgdboc=ttyS1,115200 {_WORDS[when]} {config.append}"
    return replace(config, kgdb=True, append=" ".join(words.split()))


def await_kgdb(
    machine: Machine,
    control: Control,
    when: When,
    timeout: float,
    gdb_end: Callable[[], str | None],
) -> None:
    """Wait until the guest, which a gdb on QEMU's stub has let run, is in kgdb.

    With ``When.SHELL`` it is sent there by SysRq-G from its shell, whose memory is then current.
    ``timeout`` in seconds. Raises BootError, and GuestFailure for a panic.
    """
    deadline = time.monotonic() + timeout
    if when is When.SHELL:
        _await_text(machine, control, machine.config.image.shell_marker, deadline, gdb_end)
        enter_kgdb(machine)
        _await_text(machine, control, _SYSRQ, deadline, gdb_end)
    else:
        _await_text(machine, control, _WAITING, deadline, gdb_end)


def enter_kgdb(machine: Machine) -> None:
    """Type SysRq-G at the shell of the running guest."""
    machine.console.send(_ENTER)


def _await_text(
    machine: Machine,
    control: Control,
    text: str,
    deadline: float,
    gdb_end: Callable[[], str | None],
) -> None:
    while text not in machine.console.text():
        end, qemu_runs = gdb_end(), machine.running()
        for message in control.messages(TICK):
            match message:
                case {"event": "failed", "reason": reason}:
                    raise BootError(str(reason))
                case {"event": "stopped"}:
                    raise BootError("the guest stopped before it was in kgdb")
        machine.console.check()
        if end is not None:
            raise BootError(f"{end} before the guest was in kgdb")
        if not qemu_runs:
            raise BootError(f"QEMU ended before the guest was in kgdb: {machine.last_words()}")
        if time.monotonic() > deadline:
            raise BootError(
                f"the guest was not in kgdb in time: {text!r} is not on its console; has the "
                "kernel CONFIG_KGDB_SERIAL_CONSOLE?"
            )


class FirstGdb(Closing):
    """The gdb on QEMU's stub, with nobody at its terminal. A context manager."""

    def __init__(self, machine: Machine) -> None:
        """Start it: it lets the guest run, with the encryption that was asked for."""
        self._machine = machine
        self._open = ExitStack()
        self._control = self._open.enter_context(Control(control_path(machine)))
        plan = write_plan(machine, SHELL)
        with (machine.directory / "emulation.log").open("wb") as log:
            self._process = subprocess.Popen(
                tethered(["gdb", "-nx", "-q", "-batch", "-ex", plan]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._open.callback(self._end)

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def await_kgdb(self, when: When, timeout: float) -> None:
        """See the function of that name."""
        await_kgdb(self._machine, self._control, when, timeout, self._ended)

    def _ended(self) -> str | None:
        return None if self._process.poll() is None else "the gdb on QEMU's stub ended"

    def close(self) -> None:
        """End it. May be called again."""
        self._open.close()


class KgdbSession(Closing):
    """A machine in kgdb with a gdb on the line, and one on QEMU's stub: for tests and scripts.

    A context manager; ``close()`` ends all of it.

    Attributes:
        machine: the guest.
        stub: the gdb on QEMU's stub; busy with ``continue`` but after ``stop_by_qemu``.
        gdb: the gdb on the serial line, at its prompt, with the guest in kgdb.
    """

    def __init__(
        self, config: MachineConfig, when: When = When.SHELL, timeout: float = BOOT_DEADLINE
    ) -> None:
        """Boot ``config`` and go into kgdb. ``timeout`` in seconds. Raises BootError."""
        with ExitStack() as stack:
            self.machine = stack.enter_context(Machine(kgdb_config(config, when)))
            self.stub = stack.enter_context(Gdb())
            control = stack.enter_context(Control(control_path(self.machine)))
            self._running = self.stub.begin(write_plan(self.machine, SHELL))
            await_kgdb(self.machine, control, when, timeout, self._stub_end)
            self._control: Control | None = control
            self.gdb = stack.enter_context(Gdb())
            self.connect(timeout)
            self._open = stack.pop_all()

    def _stub_end(self) -> str | None:
        return None if self.stub.running() else "the gdb on QEMU's stub ended"

    def connect(self, timeout: float = BOOT_DEADLINE) -> None:
        """Connect ``gdb`` to the guest, which is in kgdb. Raises BootError."""
        path = control_path(self.machine, kgdb=True)
        path.unlink(missing_ok=True)  # of the connection before
        with Control(path) as control:
            pending = self.gdb.begin(write_plan(self.machine, RESET, kgdb=True))
            deadline = time.monotonic() + timeout
            while not _connected(control, deadline):
                pass
            control.go(True)
            pending.result()

    def stop_by_qemu(self) -> None:
        """Stop the guest under kgdb's feet: ``stub`` can look now, ``gdb`` cannot."""
        self.machine.stop()
        if self._control is not None:
            # The first stop ends the plan of the stub's gdb.
            while not any(m["event"] == "stopped" for m in self._control.messages(TICK)):
                pass
            self._control.go(True)
            self._control = None
        self._running.result()

    def resume_by_qemu(self) -> None:
        """Undo ``stop_by_qemu``."""
        self._running = self.stub.begin("continue")
        while not self.machine.qmp.running():
            time.sleep(TICK)

    def close(self) -> None:
        """End both gdbs and QEMU. May be called again."""
        self._open.close()


def _connected(control: Control, deadline: float) -> bool:
    for message in control.messages(TICK):
        match message:
            case {"event": "failed", "reason": reason}:
                raise BootError(f"kgdb does not answer: {reason}")
            case {"event": "stopped"}:
                return True
    if time.monotonic() > deadline:
        raise BootError("kgdb does not answer in time")
    return False

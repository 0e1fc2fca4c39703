# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring a machine to the place where it should stop, with gdb attached and the extension loaded.

gdb runs ``gdb_sme.target.driver``, which connects, lets the guest run and reports. Meanwhile this
side watches what gdb cannot see: the console, QEMU, and the time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gdb_sme.errors import BootError, TargetError, UsageError
from gdb_sme.harness.closing import Closing
from gdb_sme.harness.control import Control
from gdb_sme.harness.gdb import PLUGIN, Gdb, load_command
from gdb_sme.harness.layout import Encryption, MachineConfig
from gdb_sme.harness.qemu import Machine

TICK = 0.05
"""Seconds between two looks at the console."""

_QEMU_END = 2.0
"""Seconds between the last packet of QEMU's stub and the end of its process."""

_RESUME_DEADLINE = 60.0

BOOT_DEADLINE = 180.0
"""Seconds that a boot may take unless told otherwise; TCG on a busy machine is slow."""

RESET = "reset"
SHELL = "shell"


KGDB_SETTINGS = (
    "remotetimeout 10",
    # kgdb does not say what it is, and takes packets of up to 1024 characters.
    "architecture i386:x86-64",
    "remote memory-read-packet-size 1000",
    "remote memory-read-packet-size fixed",
)
"""gdb's settings for a line with kgdb at its end; docs/kgdb.md explains them."""


class BootInterrupted(BootError):
    """Somebody pressed Ctrl-C in gdb before the stop was reached."""


def check_stop(config: MachineConfig, until: str) -> None:
    """Raise UsageError when ``until`` cannot be reached with ``config``."""
    if until in (RESET, SHELL):
        return
    if config.image.vmlinux is None and not until.startswith("*"):
        raise UsageError(f"--until {until} needs the kernel's symbols: give --vmlinux as well")


def emulate_command(config: MachineConfig) -> str | None:
    """Return the gdb command that makes the guest find its encryption, or None for none."""
    if config.encryption is Encryption.NONE:
        return None
    return f"sme emulate {config.encryption} --c-bit {config.c_bit}"


def at_start(config: MachineConfig, trace: bool, *, kgdb: bool = False) -> list[str]:
    """Return the gdb commands for when it is connected, in their order.

    With ``kgdb`` another gdb, on QEMU's stub, makes the guest find its encryption.
    """
    emulate = None if kgdb else emulate_command(config)
    return [*([emulate] if emulate else []), *(["sme trace start"] if trace else [])]


def write_plan(
    machine: Machine,
    until: str,
    commands: Sequence[str] = (),
    stdout: int | None = None,
    *,
    kgdb: bool = False,
    trace: bool = False,
) -> str:
    """Write the driver's plan into the machine's directory; return gdb's command to start it.

    With ``trace``, early boot is recorded. With ``kgdb`` the gdb is to be on the guest's second
    serial port, where its kernel waits.
    """
    plan = machine.directory / ("kgdb-plan.json" if kgdb else "plan.json")
    vmlinux = machine.config.image.vmlinux
    what: dict[str, Any] = {
        "control": str(control_path(machine, kgdb=kgdb)),
        "gdb_socket": str(machine.kgdb_socket if kgdb else machine.gdb_socket),
        "settings": KGDB_SETTINGS if kgdb else (),
        "plugin": str(PLUGIN),
        "vmlinux": None if vmlinux is None else str(vmlinux),
        "at_start": at_start(machine.config, trace, kgdb=kgdb),
        "kaslr": machine.config.kaslr and not kgdb,
        "until": until,
        "commands": list(commands),
        "stdout": stdout,
    }
    plan.write_text(json.dumps(what))
    return load_command(f"from gdb_sme.target import driver; driver.main({str(plan)!r})")


def control_path(machine: Machine, *, kgdb: bool = False) -> Path:
    """Return where the driver of this machine's gdb, or of the one on kgdb's line, reports to."""
    return machine.directory / ("kgdb-control.sock" if kgdb else "control.sock")


def await_stop(
    machine: Machine,
    control: Control,
    until: str,
    timeout: float,
    gdb_end: Callable[[], str | None],
) -> None:
    """Wait until gdb's driver has the guest at ``until``; for ``"shell"``, stop it there.

    The driver then waits for ``control.go()``. ``timeout`` is in seconds; ``gdb_end`` says how gdb
    ended, or None while it is there. Raises BootError with the reason (GuestFailure for a panic,
    BootInterrupted for Ctrl-C in gdb), and leaves the guest as it is.
    """
    deadline = time.monotonic() + timeout
    goal = "gdb connected"
    running = shell_seen = False
    while True:
        end, qemu_runs = gdb_end(), machine.running()
        for message in control.messages(TICK):
            match message:
                case {"event": "booting"}:
                    running, goal = True, f"the kernel reached {until}"
                case {"event": "failed", "reason": reason}:
                    machine.console.check()
                    if running and machine.ended(_QEMU_END):
                        raise BootError(f"QEMU ended before {goal}: {machine.last_words()}")
                    raise BootError(str(reason))
                case {"event": "stopped", "reached": reached}:
                    if until == RESET or reached or shell_seen:
                        return
                    machine.console.check()
                    raise BootInterrupted(f"interrupted before {goal}")
        machine.console.check()
        if until == SHELL and not shell_seen and machine.shell_reached():
            shell_seen = True
            machine.stop()
        if end is not None:
            raise BootError(f"{end} before {goal}")
        if not qemu_runs:
            raise BootError(f"QEMU ended before {goal}: {machine.last_words()}")
        if time.monotonic() > deadline:
            raise BootError(f"{timeout:g} s passed before {goal}")


class Session(Closing):
    """A machine at a stop with a gdb attached: what tests and scripts work with.

    A context manager; ``close()`` ends all of it.

    Attributes:
        machine: the guest, with ``machine.qmp`` and ``machine.console``.
        gdb: the gdb session, at its prompt.
    """

    def __init__(self, config: MachineConfig, until: str, timeout: float = BOOT_DEADLINE) -> None:
        """Boot ``config`` to ``until``: ``"reset"``, ``"shell"`` or a location in the kernel.

        ``timeout`` in seconds for the boot. Raises BootError, or UsageError as ``check_stop``.
        """
        check_stop(config, until)
        with ExitStack() as stack:
            self.machine = stack.enter_context(Machine(config))
            self.gdb = stack.enter_context(Gdb())
            with Control(control_path(self.machine)) as control:
                booted = self.gdb.begin(write_plan(self.machine, until))
                await_stop(self.machine, control, until, timeout, self._gdb_end)
                control.go(True)
                booted.result()
            self._open = stack.pop_all()

    def _gdb_end(self) -> str | None:
        return None if self.gdb.running() else "gdb ended"

    def alive(self) -> bool:
        """Whether both gdb and QEMU are there."""
        return self.gdb.running() and self.machine.running()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Let the guest run while the block runs, then stop it; gdb is busy meanwhile.

        Raises TargetError when it does not run within a minute, or stops for another reason.
        """
        going = self.gdb.begin("continue")
        deadline = time.monotonic() + _RESUME_DEADLINE
        while not self.machine.qmp.running():
            if time.monotonic() > deadline:
                raise TargetError(f"the guest did not run within {_RESUME_DEADLINE:g} s")
            time.sleep(TICK)
        try:
            yield
        finally:
            self.machine.stop()
            going.result()

    def shell(self, command: str, timeout: float = 60.0) -> str:
        """Run ``command`` in the guest's shell; return its output. The guest stands again then.

        Needs a guest at ``"shell"``. Raises TargetError also when the command fails.
        """
        with self.resumed():
            output, status = self.machine.console.run(command, timeout)
        if status:
            raise TargetError(f"`{command}` failed in the guest with status {status}: {output}")
        return output

    def close(self) -> None:
        """End gdb and QEMU. May be called again."""
        self._open.close()

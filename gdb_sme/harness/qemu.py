# SPDX-License-Identifier: GPL-2.0-or-later
"""One running QEMU: guest RAM in a memfd, sockets and logs in a private directory.

Nothing of it outlives the process that started it: QEMU is killed with it, RAM vanishes with QEMU,
no TCP port and no file in /dev/shm is ever made.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from gdb_sme.errors import BootError
from gdb_sme.harness.closing import Closing
from gdb_sme.harness.console import Console
from gdb_sme.harness.layout import (
    QEMU,
    MachineConfig,
    MemoryLayout,
    hand_command_line,
    join_options,
    memory_layout,
    qemu_command,
)
from gdb_sme.harness.process import PrivateDirectory, tethered
from gdb_sme.harness.qmp import Qmp, QmpError

_TICK = 0.02
_TOKEN_BYTES = 8
_NOISE = "TCG doesn't support requested feature"
"""EPYC has features that TCG lacks; QEMU says so for each of them."""

_SHUTDOWNS = {
    "guest-reset": "the guest reset itself: a reboot, or a triple fault",
    "guest-shutdown": "the guest powered off",
}
"""QEMU's ShutdownCause (qapi/run-state.json), for people."""

LOG_FILES = ("console.log", "qemu.log", "qemu-command.txt", "emulation.log")


class Machine(Closing):
    """QEMU, started and stopped at reset, with gdb's stub waiting on ``gdb_socket``.

    A context manager; ``close()`` ends QEMU and removes ``directory``.

    Attributes:
        config: what was asked for.
        layout: where guest RAM lies.
        directory: private, with the sockets and logs.
        gdb_socket: Unix socket for gdb's ``target remote``.
        kgdb_socket: the same for the kernel's own stub, with ``config.kgdb``.
        console: the guest's serial console.
        qmp: QEMU's monitor.
        ram_fd: memfd of ``config.memory`` bytes that is guest RAM (``layout.parts`` has offsets).
    """

    def __init__(self, config: MachineConfig, timeout: float = 60.0) -> None:
        """Start QEMU and check what it shows of RAM. ``timeout`` in seconds for it to answer.

        Raises BootError when QEMU is not there, does not start, or lays out RAM in another way.
        """
        if shutil.which(QEMU) is None:
            raise BootError(f"{QEMU} is not installed: apt install qemu-system-x86")
        self.config = config
        self.layout = memory_layout(config)
        with ExitStack() as stack:
            self.directory = stack.enter_context(PrivateDirectory()).path
            self.gdb_socket = self.directory / "gdb.sock"
            self.kgdb_socket = self.directory / "kgdb.sock"
            self.ram_fd = os.memfd_create("guest-ram")
            stack.callback(os.close, self.ram_fd)
            os.ftruncate(self.ram_fd, config.memory)
            self.process = self._start()
            stack.callback(_kill, self.process)
            self.console = Console(self.directory / "console.log", self.directory / "console.sock")
            stack.callback(self.console.close)
            self.qmp = stack.enter_context(self._connect(timeout))
            check_views(self.layout, self.qmp, self.ram_fd)
            self._open = stack.pop_all()

    def _start(self) -> subprocess.Popen[bytes]:
        ram_file = f"/proc/self/fd/{self.ram_fd}"
        command = qemu_command(self.config, ram_file, self.directory)
        (self.directory / "qemu-command.txt").write_text(
            f"# as it was started; {ram_file} was an open memfd\n{join_options(command)}\n\n"
            "# the same by hand, with RAM in a plain file\n"
            + hand_command_line(self.config, "guest-ram", "gdb.sock")
            + "\n"
        )
        with (self.directory / "qemu.log").open("wb") as log:
            return subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self.ram_fd,),
                start_new_session=True,
            )

    def _connect(self, timeout: float) -> Qmp:
        deadline = time.monotonic() + timeout
        while True:
            running = self.running()
            try:
                return Qmp(self.directory / "qmp.sock", timeout)
            except QmpError as error:
                if not running:
                    raise BootError(f"QEMU did not start: {self._end()}") from error
                if time.monotonic() > deadline:
                    raise BootError(f"QEMU did not start within {timeout:g} s") from error
            time.sleep(_TICK)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.process.pid

    def running(self) -> bool:
        """Whether QEMU is there (its guest may stand)."""
        return self.process.poll() is None

    def ended(self, timeout: float) -> bool:
        """Whether QEMU ends within ``timeout`` seconds."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Stop the guest; a gdb that waits for it sees a stop. Raises BootError without QEMU."""
        try:
            self.qmp.stop()
        except QmpError as error:
            raise BootError(f"QEMU ended: {self.last_words()}") from error

    def shell_reached(self) -> bool:
        """Whether the image has told on the console that user space is up."""
        return self.config.image.shell_marker in self.console.text()

    def last_words(self) -> str:
        """Return why QEMU, which has ended, did so: what the guest did, or what QEMU said."""
        for event in self.qmp.last_events():
            if event["event"] == "SHUTDOWN" and event["data"]["reason"] in _SHUTDOWNS:
                return _SHUTDOWNS[event["data"]["reason"]]
        return self._end()

    def _end(self) -> str:
        said = [
            line
            for line in (self.directory / "qemu.log").read_text(errors="replace").splitlines()
            if line.strip() and _NOISE not in line
        ]
        if said:
            return said[-1].removeprefix(f"{QEMU}: ")
        status = self.process.wait()
        return f"killed by signal {-status}" if status < 0 else f"exit status {status}"

    def keep_logs(self, directory: Path) -> None:
        """Copy console, QEMU's messages and command line into ``directory``, made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in LOG_FILES:
            if (self.directory / name).exists():
                shutil.copyfile(self.directory / name, directory / name)

    def close(self) -> None:
        """End QEMU and remove the directory. May be called again."""
        self._open.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def check_views(layout: MemoryLayout, qmp: Qmp, ram_fd: int) -> None:
    """Check that the guest's RAM is where ``layout`` says, in both views. The guest must stand.

    A token goes into the first and the last 8 bytes of each part of the file, is read by QEMU at
    its physical addresses, and is taken out again. Raises BootError with the first address that
    shows something else.
    """
    for part in layout.parts:
        for where in (0, part.size - _TOKEN_BYTES):
            token = secrets.token_bytes(_TOKEN_BYTES)
            before = os.pread(ram_fd, _TOKEN_BYTES, part.offset + where)
            os.pwrite(ram_fd, token, part.offset + where)
            try:
                for pa in sorted({part.pa + where, (part.pa + where) | layout.enc_mask}):
                    if _physical(qmp, pa) != token:
                        raise BootError(
                            f"QEMU does not show byte {part.offset + where:#x} of guest RAM at "
                            f"physical {pa:#x}: this QEMU lays RAM out in another way; "
                            "see its `info mtree -f`"
                        )
            finally:
                os.pwrite(ram_fd, before, part.offset + where)


def _physical(qmp: Qmp, pa: int) -> bytes | None:
    """Return the 8 bytes at ``pa``, or None when QEMU has nothing there."""
    match = re.fullmatch(r"[0-9a-f]+: 0x([0-9a-f]{16})\s*", qmp.hmp(f"xp /1gx {pa:#x}"))
    return int(match[1], 16).to_bytes(_TOKEN_BYTES, "little") if match else None

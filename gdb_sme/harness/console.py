# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's serial console: everything it printed, waiting for text on it, typing into it.

QEMU writes all output to a log file, which is what is read here. The socket is connected only in
order to type, so that a person can have it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gdb_sme.errors import BootError, TargetError

FAILURE_TEXTS = (
    "Kernel panic - not syncing",
    "PANIC: early exception",
    "Oops: ",
    "-- System halted",
)
"""What a kernel prints when it goes no further.

Sources, in 6.1: kernel/panic.c panic(); arch/x86/mm/extable.c early_fixup_exception();
arch/x86/kernel/dumpstack.c __die_header(); arch/x86/boot/compressed/error.c error().
"""

_LAST_TEXT = "---[ end "
_LINES_SHOWN = 12
_SETTLE = 2.0
_TICK = 0.05


class GuestFailure(BootError):
    """The guest's kernel gave up. ``lines`` are the lines of its console that say so."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__(f"the kernel gave up: {lines[0].strip()}")
        self.lines = lines


def find_failure(text: str) -> tuple[str, ...]:
    """Return up to 12 lines of ``text``, from the first of ``FAILURE_TEXTS`` on; () without."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if any(failure in line for failure in FAILURE_TEXTS):
            return tuple(lines[number : number + _LINES_SHOWN])
    return ()


class Console:
    """A guest's serial console: ``log`` is the file QEMU writes to, ``path`` the socket."""

    def __init__(self, log: Path, path: Path) -> None:
        self.log = log
        self.path = path
        self._socket: socket.socket | None = None
        self._commands = 0

    def size(self) -> int:
        """Return the number of bytes printed so far: a position for ``text``."""
        return self.log.stat().st_size if self.log.exists() else 0

    def text(self, start: int = 0) -> str:
        """Return what was printed from byte ``start`` on, without carriage returns."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace").replace("\r", "")

    def failure(self, start: int = 0) -> tuple[str, ...]:
        """Return the lines of a panic or the like since byte ``start``, or ().

        After the first such line it waits for the rest of them, two seconds at most.
        """
        if not find_failure(self.text(start)):
            return ()
        deadline = time.monotonic() + _SETTLE
        while time.monotonic() < deadline and _LAST_TEXT not in self.text(start):
            time.sleep(_TICK)
        return find_failure(self.text(start))

    def check(self, start: int = 0) -> None:
        """Raise GuestFailure when the kernel has given up since byte ``start``."""
        if lines := self.failure(start):
            raise GuestFailure(lines)

    def wait_for(
        self,
        text: str,
        timeout: float,
        *,
        start: int = 0,
        alive: Callable[[], bool] = lambda: True,
    ) -> str:
        """Wait until ``text`` has been printed since byte ``start``; return all since then.

        ``timeout`` is in seconds; ``alive`` says whether QEMU still runs. Raises GuestFailure as
        soon as one of ``FAILURE_TEXTS`` is there, TargetError after the timeout or QEMU's end.
        """
        deadline = time.monotonic() + timeout
        while True:
            was_alive = alive()
            printed = self.text(start)
            if text in printed:
                return printed
            self.check(start)
            if not was_alive:
                raise TargetError(f"QEMU ended before {text!r} was on the console")
            if time.monotonic() > deadline:
                raise TargetError(f"{text!r} was not on the console within {timeout:g} s")
            time.sleep(_TICK)

    def send(self, line: str) -> None:
        """Type ``line`` and Enter. The guest must run to take it. Raises TargetError."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.connect(str(self.path))
                # What is printed comes here too, and the guest is slowed when nobody reads it.
                threading.Thread(target=_drain, args=(self._socket,), daemon=True).start()
            self._socket.sendall(line.encode() + b"\n")
        except OSError as error:
            raise TargetError(f"cannot type on the console {self.path}: {error}") from error

    def run(self, command: str, timeout: float = 60.0) -> tuple[str, int]:
        """Run a shell command in the running guest; return its output and its exit status.

        Needs a shell at its prompt on the console. Raises as ``wait_for``.
        """
        self._commands += 1
        number = self._commands
        start = self.size()
        # The line is echoed as it is typed: the marks are put together by printf, so that they
        # stand in the output alone.
        self.send(
            f"printf '<%s%d>\\n' begin {number}; {command}; printf '<%d %s%d>\\n' $? end {number}"
        )
        printed = self.wait_for(f" end{number}>", timeout, start=start)
        _, _, printed = printed.partition(f"<begin{number}>\n")
        output, _, end = printed.rpartition(f" end{number}>")[0].rpartition("<")
        return output, int(end)

    def close(self) -> None:
        """Leave the console. May be called again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _drain(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except OSError:  # closed by close()
        return

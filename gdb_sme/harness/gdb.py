# SPDX-License-Identifier: GPL-2.0-or-later
"""A gdb on a terminal of its own, driven command by command through pexpect."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gdb_sme.errors import TargetError
from gdb_sme.harness.closing import Closing
from gdb_sme.harness.process import tethered

if TYPE_CHECKING:
    import pexpect

PACKAGE = Path(__file__).resolve().parents[1]
"""The directory ``gdb_sme``."""

PLUGIN = PACKAGE / "plugin.py"

_SETTINGS = (
    "width 0",
    "height 0",
    "pagination off",
    "confirm off",
    "style enabled off",
    "debuginfod enabled off",
    "history save off",
)
_DEADLINE = 60.0
_READ_SIZE = 1 << 16

_LINE_MAX = 4000
"""A terminal passes on lines of up to 4095 bytes (termios(3), canonical mode)."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a gdb command came to: what it printed, and its error or None. Both without CR."""

    output: str
    error: str | None

    @property
    def failed(self) -> bool:
        """Whether the command ended in an error."""
        return self.error is not None


def load_command(code: str) -> str:
    """Return a gdb command that runs Python ``code`` with this package on gdb's path."""
    return f"python import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}"


class Gdb(Closing):
    """A gdb session. A context manager; ``close()`` ends gdb.

    Commands run one at a time, and what each printed is known by two marks around it, not by
    gdb's prompt. Attribute ``child`` is the pexpect process, for tests of what a person types.
    """

    def __init__(self, arguments: Sequence[str] = (), timeout: float = _DEADLINE) -> None:
        """Start ``gdb -nx -q ARGUMENTS``. ``timeout`` in seconds: for the start, and unless told
        otherwise for every command. Raises TargetError.
        """
        import pexpect

        self.timeout = timeout
        self._mark = secrets.token_hex(8)
        self._commands = 0
        settings = [word for setting in _SETTINGS for word in ("-iex", f"set {setting}")]
        load = load_command("from gdb_sme.target import driver as _driver")
        command, *rest = tethered(
            ["gdb", "-nx", "-q", *settings, "-iex", "set editing off", "-iex", load, *arguments]
        )
        self.child: pexpect.spawn[str] = pexpect.spawn(
            command,
            rest,
            timeout=timeout,
            encoding="utf-8",
            codec_errors="replace",
            echo=False,
            maxread=_READ_SIZE,
            env={**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8"},
        )
        self.child.delaybeforesend = None
        self.run("echo")

    def begin(self, command: str) -> Pending:
        """Send ``command`` and return without waiting for it. One at a time."""
        self._commands += 1
        mark = f"{self._mark}-{self._commands}"
        line = f"python _driver.run_marked({json.dumps(command)}, {mark!r})"
        if len(line) > _LINE_MAX:
            raise TargetError(f"gdb command of {len(command)} characters is too long for a line")
        self.child.sendline(line)
        return Pending(self, command, mark)

    def run(self, command: str, timeout: float | None = None) -> Result:
        """Run ``command`` and return what it printed and whether it failed.

        ``timeout`` in seconds (None: that of the session). Raises TargetError when gdb ends or does
        not finish in time; then the session is of no further use.
        """
        return self.begin(command).result(timeout)

    def execute(self, command: str, timeout: float | None = None) -> str:
        """Run ``command`` and return what it printed. Raises TargetError with its error."""
        result = self.run(command, timeout)
        if result.error is not None:
            raise TargetError(f"gdb command `{command}` failed: {result.error}")
        return result.output

    def evaluate(self, expression: str) -> int:
        """Return the value of an integer expression, 64 bits unsigned. Raises TargetError."""
        return int(self.execute(f"output/u (unsigned long long)({expression})"))

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.child.sendintr()

    def running(self) -> bool:
        """Whether gdb is there."""
        return bool(self.child.isalive())

    @property
    def pid(self) -> int:
        """gdb's process id."""
        return self.child.pid or 0

    def close(self) -> None:
        """End gdb at once. May be called again."""
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()  # close() would give it a fifth of a second
        self.child.close(force=True)


class Pending:
    """A command under way, from ``Gdb.begin``."""

    def __init__(self, gdb: Gdb, command: str, mark: str) -> None:
        self._gdb = gdb
        self._command = command
        self._mark = mark
        self._begun = False

    def begun(self, timeout: float | None = None) -> None:
        """Wait until gdb runs the command, so that Ctrl-C reaches it; as ``Gdb.run``."""
        if not self._begun:
            self._expect(f"{self._mark}:begin\r\n", self._seconds(timeout))
            self._begun = True

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the command's end, as ``Gdb.run``. To be called once."""
        self.begun(timeout)
        seconds = self._seconds(timeout)
        output = self._expect(f"{self._mark}:end:", seconds)
        error: str | None = json.loads(self._expect("\r\n", seconds))
        if error is not None:
            output = output.removesuffix(f"{error}\n")
        return Result(output, error)

    def _seconds(self, timeout: float | None) -> float:
        return self._gdb.timeout if timeout is None else timeout

    def _expect(self, text: str, seconds: float) -> str:
        import pexpect

        child = self._gdb.child
        found = child.expect_exact([text, pexpect.TIMEOUT, pexpect.EOF], timeout=seconds)
        said = str(child.before or "").replace("\r", "")
        if found:
            why = "did not finish" if found == 1 else "ended gdb"
            last = said.strip().rpartition("\n")[2]
            within = f" within {seconds:g} s" if found == 1 else ""
            raise TargetError(f"gdb command `{self._command}` {why}{within}; last said: {last!r}")
        return said

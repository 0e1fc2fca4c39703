# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of QEMU's monitor protocol (QMP), as much of it as the harness needs.

Protocol: QEMU, docs/interop/qmp-spec.txt. One JSON object a line in both directions; events come at
any time between the answers.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from gdb_sme.errors import TargetError
from gdb_sme.harness.closing import Closing

_DEADLINE = 60.0
"""Seconds that an answer may take: QEMU answers at once, a machine under load does not."""


class QmpError(TargetError):
    """QEMU refused a command, or no longer answers."""


class Qmp(Closing):
    """A connection to QEMU's monitor. Not for more than one thread at a time."""

    def __init__(self, path: Path, timeout: float = _DEADLINE) -> None:
        """Connect to the Unix socket ``path`` and wait for QEMU's greeting.

        ``timeout`` is in seconds, for the greeting and for every answer. Raises QmpError.
        """
        self.timeout = timeout
        self.events: list[dict[str, Any]] = []
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._message(time.monotonic() + timeout)
            self.execute("qmp_capabilities")
        except OSError as error:
            self.close()
            raise QmpError(f"cannot reach QEMU's monitor at {path}: {error}") from error
        except QmpError:
            self.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its ``return`` value. Events met are kept in ``events``.

        Raises QmpError when QEMU refuses the command, is gone, or does not answer in time.
        """
        request = {"execute": command, "arguments": arguments}
        deadline = time.monotonic() + self.timeout
        try:
            self._socket.settimeout(self.timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"QEMU is gone, {command} was not sent: {error}") from error
        while True:
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QmpError(f"QEMU refused {command}: {message['error']['desc']}")
            self.events.append(message)

    def hmp(self, line: str) -> str:
        """Run a line of QEMU's human monitor and return what it printed."""
        answer = self.execute("human-monitor-command", **{"command-line": line})
        return str(answer).replace("\r\n", "\n")

    def stop(self) -> None:
        """Stop the guest's CPUs; an attached gdb sees a stop. Does nothing when they stand."""
        self.execute("stop")

    def running(self) -> bool:
        """Whether the guest's CPUs run."""
        return bool(self.execute("query-status")["running"])

    def last_events(self) -> list[dict[str, Any]]:
        """Return ``events``, with those that came after the last answer. For a QEMU that ended."""
        try:
            while True:
                self.events.append(self._message(time.monotonic() + self.timeout))
        except QmpError:
            return self.events

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpError(f"QEMU's monitor did not answer within {self.timeout:g} s")
            try:
                self._socket.settimeout(left)
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise QmpError(f"QEMU is gone: {error}") from error
            if not data:
                raise QmpError("QEMU is gone: it closed its monitor")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close the connection; QEMU goes on. May be called again."""
        self._socket.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""The line between a boot outside gdb and ``gdb_sme.target.driver`` inside it.

One JSON object a line over a Unix socket. gdb says what it has come to::

    {"event": "booting"}                        the guest starts to run now
    {"event": "stopped", "reached": bool}       it stands; reached: at the breakpoint of --until
    {"event": "failed", "reason": TEXT}         the boot phase cannot go on
    {"event": "command", "text": TEXT}          a command of the user's starts
    {"event": "command-failed", "text": TEXT}   it failed
    {"event": "finished"}                       all of them are done
    {"event": "quit", "status": N}              a command ended gdb

and after "stopped" it waits for ``{"go": true}`` (run the commands) or ``{"go": false}``.
"""

from __future__ import annotations

import json
import select
import socket
from pathlib import Path
from typing import Any

from gdb_sme.harness.closing import Closing


class Control(Closing):
    """The outer end: listens at ``path`` for the one gdb that will connect."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self._received = b""
        self._ended = False

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when ``messages`` has something to do."""
        return (self._connection or self._listener).fileno()

    def messages(self, timeout: float | None) -> list[dict[str, Any]]:
        """Return what gdb has said, waiting ``timeout`` seconds at most (None: without end).

        The list is empty when there is nothing new; after gdb's end it always is.
        """
        if not select.select([] if self._ended else [self], [], [], timeout)[0]:
            return []
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            return []
        data = self._connection.recv(65536)
        self._ended = not data
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def go(self, go: bool) -> None:
        """Answer "stopped". gdb may be gone by now: its end is noticed elsewhere."""
        if self._connection is not None:
            try:
                self._connection.sendall(json.dumps({"go": go}).encode() + b"\n")
            except BrokenPipeError:
                return

    def close(self) -> None:
        """Close both sockets. May be called again."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

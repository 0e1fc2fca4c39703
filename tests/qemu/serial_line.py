# SPDX-License-Identifier: GPL-2.0-or-later
"""A serial line that can be cut, disturbed, or lead nowhere: a relay between Unix sockets."""

from __future__ import annotations

import re
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from gdb_sme.harness.closing import Closing


class SerialLine(Closing):
    """Relays between one client of ``path`` and the socket ``far``, or nobody when that is None.

    Attributes:
        disturb: what becomes of a block of bytes on its way to the client; empty bytes cut the
            line.
        sent: all that the client has sent.
    """

    def __init__(self, path: Path, far: Path | None) -> None:
        self.path = path
        self.disturb: Callable[[bytes], bytes] = lambda data: data
        self.sent = bytearray()
        self._far = far
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._wake, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._relay)
        self._thread.start()

    def _relay(self) -> None:
        with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as far:
            selector.register(self._end, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            if any(key.fileobj is self._end for key, _ in selector.select()):
                return
            near, _ = self._listener.accept()
            with near:
                selector.unregister(self._listener)
                selector.register(near, selectors.EVENT_READ)
                if self._far is not None:
                    far.connect(str(self._far))
                    selector.register(far, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        if key.fileobj is self._end:
                            return
                        try:
                            data = (near if key.fileobj is near else far).recv(65536)
                        except ConnectionResetError:  # it left with something unread
                            data = b""
                        if key.fileobj is near:
                            self.sent += data
                        if key.fileobj is near and self._far is not None and data:
                            far.sendall(data)
                        elif key.fileobj is far:
                            data = self.disturb(data)
                            near.sendall(data)
                        if not data:
                            return

    def reads(self) -> list[tuple[int, int]]:
        """Address and length of every read of memory that the client has asked for, in order."""
        found = re.findall(rb"\$m([0-9a-f]+),([0-9a-f]+)#", bytes(self.sent))
        return [(int(va, 16), int(length, 16)) for va, length in found]

    def close(self) -> None:
        """Cut the line. May be called again."""
        self._wake.close()
        self._thread.join()
        self._end.close()
        self._listener.close()

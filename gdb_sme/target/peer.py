# SPDX-License-Identifier: GPL-2.0-or-later
"""The process at the other end of this process's sockets: QEMU, when it runs on this machine.

Only what /proc shows of one's own processes is used: no ptrace, no privileges.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_PROC = Path("/proc")


def peer_processes() -> Iterator[int]:
    """Process ids at the other end of every connected stream socket of this process, once each.

    A Unix socket's peer is the process that listened on it (unix(7), SO_PEERCRED); a TCP
    connection's other end is looked for among the processes of the same user.
    """
    seen = {0, os.getpid()}
    tcp: list[tuple[str, str]] = []
    for connection in _stream_sockets():
        with connection, suppress(OSError):
            if connection.family == socket.AF_UNIX:
                raw = connection.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
                )
                pid = _CREDENTIALS.unpack(raw)[0]
                if pid not in seen:
                    seen.add(pid)
                    yield pid
            else:
                tcp.append((_hex_end(connection.getpeername()), _hex_end(connection.getsockname())))
    for pid in _owners(_inodes(tcp)) if tcp else ():
        if pid not in seen:
            seen.add(pid)
            yield pid


def _stream_sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                continue
            found = socket.socket(fileno=os.dup(int(name)))
            if found.type == socket.SOCK_STREAM and found.family in (
                socket.AF_UNIX, socket.AF_INET, socket.AF_INET6,
            ):  # fmt: skip
                yield found
            else:
                found.close()


def _hex_end(name: tuple[str | int, ...]) -> str:
    """Address and port as /proc/net/tcp writes them: 32-bit words in the host's byte order."""
    host, port = str(name[0]), int(name[1])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host.partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"


def _inodes(ends: list[tuple[str, str]]) -> set[str]:
    """Inodes of the sockets on this machine whose (local, remote) ends are among ``ends``."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if (columns[1], columns[2]) in ends:
                    found.add(f"socket:[{columns[9]}]")
    return found


def _owners(sockets: set[str]) -> Iterator[int]:
    """Process ids, of those that this user may look into, that hold one of ``sockets``."""
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):
            if any(os.readlink(fd) in sockets for fd in (process / "fd").iterdir()):
                yield int(process.name)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes and directories that do not outlive the one who made them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gdb_sme.errors import BootError
from gdb_sme.harness.closing import Closing

_PREFIX = "gdb-sme-run-"
_LONGEST_NAME = "kgdb-control.sock"
"""Of all that are made in a run's directory."""
_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path (``sun_path`` of unix(7), less the final zero)."""


def tethered(command: Sequence[str]) -> list[str]:
    """Return ``command`` so wrapped that the kernel kills it when the calling thread ends.

    It holds also when the caller is killed with SIGKILL. The process keeps the pid that the start
    of the wrapper gave it. The shell in between closes the gap: had the caller ended before setpriv
    asked for the signal, the process would have another parent by now, and does not start.
    """
    guard = '[ "$PPID" = "$0" ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", guard, str(os.getpid()), *command]


class PrivateDirectory(Closing):
    """A directory of mode 0700 for the sockets and logs of one run, removed by ``close()``.

    A lock on it says that its run lives. What runs left behind that were killed with SIGKILL is
    recognised by the missing lock, and removed when the next one starts.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        _remove_leftovers(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(self._lock) and self.path.exists():
                break
            os.close(self._lock)  # another run's start took the new directory for a leftover
        if len(os.fsencode(self.path / _LONGEST_NAME)) > _LONGEST_SOCKET:
            self.close()
            raise BootError(
                f"{base} is too long a path for Unix sockets: set TMPDIR to a shorter one"
            )

    def close(self) -> None:
        """Remove the directory with all that is in it. May be called again."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(base: Path) -> None:
    for path in base.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # removed by its own run just now, or not ours to open
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The selected inferior's connection: is there one, does it stand still, what speaks at its end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import gdb

from gdb_sme.errors import TargetError

NO_TARGET = "no target; connect first, for example: target remote /path/of/qemu-gdb.sock"


def require_stopped() -> gdb.Inferior:
    """The selected inferior, when it is connected, stopped and x86-64.

    Raises:
        TargetError: with the reason and what to do.
    """
    inferior = gdb.selected_inferior()
    try:
        thread = gdb.selected_thread()
    except SystemError as error:  # gdb's own: its thread list and its threads differ
        raise TargetError(
            f"gdb has lost the target's threads ({one_line(error)}), as after a disturbed line; "
            "disconnect and connect again"
        ) from error
    # Asked first: gdb cannot even list the threads of a remote target that runs.
    if thread is not None and thread.is_valid() and thread.is_running():
        raise TargetError("the target is running; interrupt it first (Ctrl-C)")
    if not inferior.pid or not inferior.threads():
        raise TargetError(_refused_dump() or NO_TARGET)
    if thread is None:
        raise TargetError("no CPU is selected; choose one with: thread 1")
    if not thread.is_valid():
        raise TargetError(NO_TARGET)
    architecture = inferior.architecture().name()
    if architecture != "i386:x86-64":
        if inferior.connection is not None and inferior.connection.type == "core":
            from gdb_sme.core.elf import NOT_LONG_MODE

            raise TargetError(NOT_LONG_MODE)
        raise TargetError(
            f"the target's architecture is {architecture}, not i386:x86-64; "
            "for a 64-bit kernel try: set architecture i386:x86-64"
        )
    return inferior


#: What opens a dump, as it is typed or given with -ex.
_OPEN_CORE = re.compile(r"(?:core(?:-file)?|target\s+core)\s+(\S.*)")


def _refused_dump() -> str | None:
    """Why gdb could not open the dump that it was asked to, None when that is not the case.

    Of a kdump-compressed file gdb says "file format not recognized", and then has no target.
    """
    from gdb_sme.core.elf import CONVERTIBLE, not_elf

    for name in _asked_for():
        path = os.path.expanduser(name)
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                head = stream.read(16)
            if head.startswith(CONVERTIBLE):
                return f"{path}: {not_elf(head)}"
    return None


def _asked_for() -> Iterator[str]:
    """Names that may be those of a dump: the last ones typed first, then the command line's."""
    typed = [
        line.strip().partition("  ")[2]  # behind its number
        for line in gdb.execute("show commands", to_string=True).splitlines()
    ]
    with open("/proc/self/cmdline", "rb") as stream:
        given = [os.fsdecode(word) for word in stream.read().split(b"\0")[1:]]
    for words in (*reversed(typed), *given):
        match = _OPEN_CORE.fullmatch(words.strip())
        if match is not None:
            yield match[1]
        elif words in given:
            yield words.removeprefix("--core=")


def remote_connection() -> gdb.RemoteTargetConnection | None:
    """The remote connection of the selected inferior, None when it is of another kind."""
    connection = gdb.selected_inferior().connection
    return connection if isinstance(connection, gdb.RemoteTargetConnection) else None


def send_packet(connection: gdb.RemoteTargetConnection, packet: str) -> bytes:
    """Send a remote protocol packet and return the reply.

    Raises:
        TargetError: the connection broke.
    """
    try:
        reply: bytes = connection.send_packet(packet)
    except (gdb.error, RuntimeError) as error:
        raise TargetError(f"the connection to the target broke ({one_line(error)})") from error
    return reply


def monitor(command: str) -> str:
    """Output of a command of QEMU's monitor, reached through the stub.

    Raises:
        TargetError: the target has no monitor, or the connection broke.
    """
    try:
        return str(gdb.execute(f"monitor {command}", to_string=True))
    except gdb.error as error:
        raise TargetError(f"monitor {command!r} failed ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks and final stop."""
    return " ".join(str(error).split()).rstrip(".")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The selected inferior's connection: is there one, does it stand still, what speaks at its end."""

from __future__ import annotations

import gdb

from gdb_sme.errors import TargetError

NO_TARGET = "no target; connect first, for example: target remote /path/of/qemu-gdb.sock"


def require_stopped() -> gdb.Inferior:
    """The selected inferior, when it is connected, stopped and x86-64.

    Raises:
        TargetError: with the reason and what to do.
    """
    inferior = gdb.selected_inferior()
    thread = gdb.selected_thread()
    if not inferior.pid or not inferior.threads():
        raise TargetError(NO_TARGET)
    if thread is None:
        raise TargetError("no CPU is selected; choose one with: thread 1")
    if not thread.is_valid():
        raise TargetError(NO_TARGET)
    if any(each.is_running() for each in inferior.threads()):
        raise TargetError("the target is running; interrupt it first (Ctrl-C)")
    architecture = inferior.architecture().name()
    if architecture != "i386:x86-64":
        raise TargetError(
            f"the target's architecture is {architecture}, not i386:x86-64; "
            "for a 64-bit kernel try: set architecture i386:x86-64"
        )
    return inferior


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

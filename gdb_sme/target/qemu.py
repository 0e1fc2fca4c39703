# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's gdb stub: physical memory through its physical mode.

``Qqemu.PhyMemMode:1`` makes the stub's ``m`` packets read guest physical addresses (QEMU's
docs/system/gdb.rst, "Debugging physical memory"; QEMU 4.1 and later). Reads go out as raw packets,
so that no cache of gdb holds physical bytes under virtual addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gdb

from gdb_sme.core.ports import Range
from gdb_sme.errors import ReadError, TargetError
from gdb_sme.target.connection import monitor, remote_connection, send_packet
from gdb_sme.target.mtree import RamMap, parse_mtree

#: QEMU refuses an `m` packet whose reply exceeds MAX_PACKET_LENGTH, 4096 hex digits (gdbstub.c).
_CHUNK = 2048

_QUERY, _ON, _OFF = "qqemu.PhyMemMode", "Qqemu.PhyMemMode:1", "Qqemu.PhyMemMode:0"


def is_qemu(connection: gdb.RemoteTargetConnection) -> bool:
    """Whether the stub at the other end knows QEMU's physical mode."""
    return send_packet(connection, _QUERY) in (b"0", b"1")


class QemuPhysMemory:
    """Guest physical memory over the stub.

    Args:
        connection: a remote connection whose stub `is_qemu`.
    """

    name = "QEMU stub, physical mode (qemu.PhyMemMode)"

    def __init__(self, connection: gdb.RemoteTargetConnection) -> None:
        self._connection = connection
        self._depth = 0
        self._map: RamMap | None = None

    @property
    def map(self) -> RamMap:
        """Where RAM is; asked for once a connection."""
        if self._map is None:
            self._map = parse_mtree(monitor("info mtree -f"))
        return self._map

    @property
    def ram(self) -> tuple[Range, ...]:
        """Ranges of RAM and ROM without second views, lowest first."""
        return self.map.ram

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Keep the stub in physical mode for all reads of the block.

        Nothing else may read the target inside. The mode found is restored in any case; a Ctrl-C
        while that happens takes effect right after.
        """
        if self._depth:
            yield
            return
        before = _ON if send_packet(self._connection, _QUERY) == b"1" else _OFF
        try:
            if send_packet(self._connection, _ON) != b"OK":
                raise TargetError("QEMU's stub refused its physical mode (Qqemu.PhyMemMode:1)")
            self._depth = 1
            yield
        finally:
            self._depth = 0
            self._restore(before)

    def _restore(self, packet: str) -> None:
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                send_packet(self._connection, packet)
                break
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def read(self, pa: int, length: int) -> bytes:
        """See `gdb_sme.core.ports.PhysMemory.read`."""
        self._require_ram(pa, length)
        with self.batch():
            return b"".join(
                self._packet(start, min(_CHUNK, pa + length - start), pa, length)
                for start in range(pa, pa + length, _CHUNK)
            )

    def _packet(self, start: int, size: int, pa: int, length: int) -> bytes:
        reply = send_packet(self._connection, f"m{start:x},{size:x}")
        if len(reply) != 2 * size:
            text = reply.decode("ascii", "replace") or "an empty reply"
            raise ReadError(pa, length, f"QEMU's stub answers {text}")
        return bytes.fromhex(reply.decode("ascii"))

    def write(self, pa: int, data: bytes) -> None:
        """Write ``data`` at physical address ``pa``: only for commands that are named for it."""
        with self.batch():
            reply = send_packet(self._connection, f"M{pa:x},{len(data):x}:{data.hex()}")
        if reply != b"OK":
            raise TargetError(f"QEMU's stub refused to write at physical {pa:#x}")

    def read_raw(self, pa: int, length: int) -> bytes:
        """Like `read`, of any physical address: also of second views and of devices."""
        with self.batch():
            return self._packet(pa, length, pa, length)

    def _require_ram(self, pa: int, length: int) -> None:
        # QEMU answers a read outside RAM with zeros, so a table there would look merely empty.
        if any(pa in known and pa + length <= known.end for known in self.ram):
            return
        where = ", ".join(f"{known.start:#x}-{known.end:#x}" for known in self.ram)
        raise ReadError(pa, length, f"outside guest RAM ({where})")


def connect() -> QemuPhysMemory | None:
    """Physical memory of the selected inferior, None when it is not behind QEMU's stub.

    Raises:
        TargetError: it is a guest under real SEV, whose memory nobody outside can read.
    """
    connection = remote_connection()
    if connection is None or not is_qemu(connection):
        return None
    # hmp_info_sev() of QEMU's target/i386/sev.c, 7.2: "SEV is not enabled", or its state.
    if "state: running" in monitor("info sev"):
        raise TargetError(
            "the guest's memory is encrypted (real SEV): QEMU sees ciphertext in its tables; "
            "debug it from the inside, with kgdb"
        )
    return QemuPhysMemory(connection)

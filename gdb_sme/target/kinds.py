# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of target, asked in order: one module each, with a probe that looks at the target.

To add one: a module with ``probe() -> Target | None``, and its line in `PROBES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gdb

from gdb_sme.core.ports import PhysMemory, Registers
from gdb_sme.errors import TargetError
from gdb_sme.linux.directmap import DirectMapMemory
from gdb_sme.linux.vmcoreinfo import Vmcoreinfo
from gdb_sme.target import core, kgdb, qemu
from gdb_sme.target.connection import monitor
from gdb_sme.target.peer import peer_processes
from gdb_sme.target.qemu import QemuPhysMemory
from gdb_sme.target.ram import open_ram
from gdb_sme.target.registers import GdbRegisters


@dataclass(frozen=True, slots=True)
class Target:
    """What a connection leads to, for as long as it lasts.

    Attributes:
        kind: its name in `PROBES`.
        title: what it is, for the screen.
        memory: its physical memory.
        registers: its CPUs.
        stub: QEMU's stub, for what changes the guest; None for other kinds.
        vmcoreinfo: a dump's VMCOREINFO note; None for other kinds.
        virtual: its memory again, where it is read by virtual addresses; None for other kinds.
    """

    kind: str
    title: str
    memory: PhysMemory
    registers: Registers
    stub: QemuPhysMemory | None = None
    vmcoreinfo: Vmcoreinfo | None = None
    virtual: DirectMapMemory | None = None


def _probe_qemu() -> Target | None:
    stub = qemu.connect()
    if stub is None:
        return None
    connection = gdb.selected_inferior().connection
    title = f"QEMU's gdb stub at {connection.details if connection else 'nowhere'}"
    memory = open_ram(stub, peer_processes(), monitor) or stub
    return Target("qemu", title, memory, GdbRegisters(), stub)


def _probe_core() -> Target | None:
    dump = core.open_dump()
    if dump is None:
        return None
    return Target("core", dump.title, dump.memory, dump.registers, vmcoreinfo=dump.vmcoreinfo)


def _probe_kgdb() -> Target | None:
    found = kgdb.connect()
    if found is None:
        return None
    memory, registers = found
    connection = gdb.selected_inferior().connection
    title = f"kgdb at {connection.details if connection else 'nowhere'}"
    return Target("kgdb", title, memory, registers, virtual=memory)


PROBES: dict[str, Callable[[], Target | None]] = {
    "qemu": _probe_qemu,
    "core": _probe_core,
    "kgdb": _probe_kgdb,
}


def find_target(kind: str) -> Target:
    """The target that gdb is connected to.

    Args:
        kind: a name in `PROBES` to take it for that, or ``"auto"``.

    Raises:
        TargetError: it is none of the known kinds.
    """
    names = tuple(PROBES) if kind == "auto" else (kind,)
    for name in names:
        found = PROBES[name]()
        if found is not None:
            return found
    connection = gdb.selected_inferior().connection
    what = connection.description if connection is not None else "unknown"
    raise TargetError(
        f"the target ({what}) is not one that is known; probed: {', '.join(names)}; "
        "for QEMU: target remote /path/of/qemu-gdb.sock; to name it by hand: set sme target "
        f"{', '.join(PROBES)}"
    )

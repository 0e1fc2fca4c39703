# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory dumps: QEMU's dump-guest-memory, /proc/kcore, and ELF vmcores made by kdump.

gdb opens the file and shows its CPUs as threads. Memory is read from the file by physical address:
gdb itself knows a dump's virtual addresses alone, and not every dump has them.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from dataclasses import dataclass

import gdb

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.dump import NT_AUXV, DumpMemory, dump_cpus
from gdb_sme.core.elf import ET_CORE, CoreFile, Read, parse_core
from gdb_sme.errors import TargetError
from gdb_sme.linux.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

#: A file in gdb's `info files`; its words are in the person's language, so only the shape counts.
_FILE_LINE = re.compile(r"^\t\W(.+)\W, .*elf(?:32|64)-", re.MULTILINE)


class File:
    """A dump's file, open as long as this object lives.

    Raises:
        TargetError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"cannot open the dump {path}: {error.strerror}") from error
        weakref.finalize(self, os.close, fd)
        self._fd = fd
        # /proc/kcore claims the size of the whole address space.
        state = os.fstat(fd)
        proc = path.startswith("/proc/")
        self.size = state.st_size if stat.S_ISREG(state.st_mode) and not proc else None

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the file's end."""
        out = b""
        while len(out) < length:
            data = os.pread(self._fd, length - len(out), offset + len(out))
            if not data:
                break
            out += data
        return out


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump that gdb has open.

    Attributes:
        title: what it is, for the screen.
        memory: its physical memory.
        registers: its CPUs.
        vmcoreinfo: the kernel's own notes, None without them.
    """

    title: str
    memory: DumpMemory
    registers: DumpRegisters
    vmcoreinfo: Vmcoreinfo | None


class DumpRegisters:
    """`gdb_sme.core.ports.Registers` over a dump's notes."""

    def __init__(self, cpus: tuple[CpuState, ...]) -> None:
        self._cpus = cpus

    def cpus(self) -> tuple[CpuState, ...]:
        """See `gdb_sme.core.ports.Registers.cpus`."""
        return self._cpus

    @property
    def current(self) -> int:
        """Index of the selected thread's CPU."""
        thread = gdb.selected_thread()
        return min(thread.num if thread else 1, len(self._cpus)) - 1


def open_dump() -> Dump | None:
    """The dump that gdb has open, None when the target is none.

    Raises:
        TargetError: the dump cannot be used.
    """
    connection = gdb.selected_inferior().connection
    if connection is None or connection.type != "core":
        return None
    path = _core_path()
    file = File(path)
    core = parse_core(file.read, file.size)
    if core.named("CORE", NT_AUXV):
        raise TargetError(f"{path} is the dump of a process, not of a machine")
    if not core.segments:
        raise TargetError(f"{path} holds no memory, only notes; is it complete?")
    vmcoreinfo = _vmcoreinfo(core)
    la57 = None if vmcoreinfo is None else vmcoreinfo.levels5
    return Dump(
        f"{_kind(core, path)} {path}",
        DumpMemory(path, file.read, core.segments),
        DumpRegisters(dump_cpus(core, la57)),
        vmcoreinfo,
    )


def _core_path() -> str:
    """Path of the core file: gdb 13's Python does not have it, its `info files` does."""
    for path in _FILE_LINE.findall(gdb.execute("info files", to_string=True)):
        read: Read = File(path).read
        if int.from_bytes(read(16, 2), "little") == ET_CORE:
            return str(path)
    raise TargetError(
        "cannot tell which core file gdb has open; open it again with: core-file FILE"
    )


def _vmcoreinfo(core: CoreFile) -> Vmcoreinfo | None:
    notes = core.named("VMCOREINFO")
    return parse_vmcoreinfo(notes[0]) if notes else None


def _kind(core: CoreFile, path: str) -> str:
    if core.named("QEMU"):
        return "QEMU's memory dump"
    return "running kernel's memory" if path == "/proc/kcore" else "vmcore"

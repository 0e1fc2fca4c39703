# SPDX-License-Identifier: GPL-2.0-or-later
"""kgdb: the kernel's own stub, at the other end of a serial line.

It reads kernel memory as the CPU does, and gives general registers only (kernel/debug/gdbstub.c and
arch/x86/kernel/kgdb.c, 6.1 and 6.12). Its threads are tasks, not CPUs: the CPUs are in kgdb_info.
"""

from __future__ import annotations

import gdb

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import Symbols
from gdb_sme.errors import ReadError, TargetError
from gdb_sme.linux.directmap import DirectMapMemory
from gdb_sme.linux.symbols import find
from gdb_sme.target.connection import remote_connection, send_packet
from gdb_sme.target.registers import current_cpu
from gdb_sme.target.settings import SETTINGS
from gdb_sme.target.symbols import GdbSymbols

#: The reply to `m` must fit into BUFMAX, 1024 characters (arch/x86/include/asm/kgdb.h), and the
#: stub does not look (gdb_cmd_memread()). A multiple of 8 bytes.
_CHUNK = 504

#: shadow_pid(): the idle task of CPU n is thread -(n + 2), in 32 bits (gdbstub.c).
_SHADOW_CPU0 = (1 << 32) - 2
_SHADOWS = 1 << 31


class Line:
    """Kernel memory over the serial line.

    Args:
        connection: a remote connection with kgdb at its end.
    """

    def __init__(self, connection: gdb.RemoteTargetConnection) -> None:
        self._connection = connection

    def read(self, va: int, length: int) -> bytes:
        """``length`` bytes at ``va``.

        Raises:
            ReadError: kgdb refuses it: not mapped, or no kernel memory.
            TargetError: the line broke.
        """
        chunks = range(va, va + length, _CHUNK)
        return b"".join(
            self._packet(start, min(_CHUNK, va + length - start), va, length) for start in chunks
        )

    def _packet(self, start: int, size: int, va: int, length: int) -> bytes:
        reply = send_packet(self._connection, f"m{start:x},{size:x}")
        if len(reply) == 2 * size:
            try:
                return bytes.fromhex(reply.decode("ascii"))
            except ValueError:
                pass
        text = reply[:40].decode("ascii", "replace") or "nothing"
        if text.startswith("E"):
            raise ReadError(va, length, f"kgdb cannot read there ({text})", "virtual")
        raise TargetError(
            f"kgdb answers {text!r} to a read of {size} bytes at {start:#x}: the line is disturbed "
            "or out of step; try again, or connect again"
        )


class KgdbRegisters:
    """`gdb_sme.core.ports.Registers` over kgdb_info: the CPUs that kgdb has stopped."""

    def __init__(self, memory: DirectMapMemory) -> None:
        self._memory = memory

    @property
    def _symbols(self) -> Symbols:
        return self._memory.symbols

    def cpus(self) -> tuple[CpuState, ...]:
        """See `gdb_sme.core.ports.Registers.cpus`."""
        la57 = self._memory.five_levels
        found = []
        for index in self._online():
            regs = self._info(index, "debuggerinfo")
            rip = self._member(regs, "pt_regs", "ip")
            if regs and rip is not None:
                cs = self._member(regs, "pt_regs", "cs")
                flags = self._member(regs, "pt_regs", "flags")
                found.append(CpuState(index, rip, cs=cs, rflags=flags, la57=la57))
        if found:
            return tuple(found)
        # No types to look into kgdb_info with: the CPU that stopped is all that is known.
        state = current_cpu(optional=("cs",))
        stopped = self._variable("kgdb_active", 4) or 0
        return (CpuState(stopped, state.rip, cs=state.cs, rflags=state.rflags, la57=la57),)

    @property
    def current(self) -> int:
        """Position of the CPU that runs the selected thread; of the one that stopped, otherwise."""
        cpus = [cpu.index for cpu in self.cpus()]
        thread = gdb.selected_thread()
        tid = thread.ptid[1] & 0xFFFFFFFF if thread is not None else 0
        running = next((i for i in cpus if self._runs(i, tid)), None)
        if running is None:
            running = self._variable("kgdb_active", 4)
        return cpus.index(running) if running in cpus else 0

    def _runs(self, index: int, tid: int) -> bool:
        if tid >= _SHADOWS:
            return index == _SHADOW_CPU0 - tid
        return self._member(self._info(index, "task"), "task_struct", "pid") == tid

    def _online(self) -> tuple[int, ...]:
        """Numbers of the CPUs that are online; CPU 0 alone without CONFIG_SMP."""
        mask = self._variable("__cpu_online_mask", self._symbols.size("__cpu_online_mask") or 8)
        return tuple(bit for bit in range((mask or 1).bit_length()) if (mask or 1) >> bit & 1)

    def _info(self, index: int, member: str) -> int | None:
        """Member of kgdb_info[index] (kernel/debug/debug_core.h)."""
        found, image = find(self._symbols, "kgdb_info"), self._memory.image
        size = self._symbols.size("kgdb_info[0]")
        if found is None or image is None or size is None:
            return None
        return self._member(image.va_of(found[1]) + index * size, "debuggerinfo_struct", member)

    def _member(self, va: int | None, struct: str, path: str) -> int | None:
        field = self._symbols.field(struct, path)
        if not va or field is None:
            return None
        return self._number(va + field.offset, field.size)

    def _variable(self, name: str, size: int) -> int | None:
        found, image = find(self._symbols, name), self._memory.image
        return None if found is None or image is None else self._number(image.va_of(found[1]), size)

    def _number(self, va: int, size: int) -> int | None:
        try:
            return int.from_bytes(self._memory.read_virtual(va, size), "little")
        except ReadError:
            return None


def connect() -> tuple[DirectMapMemory, KgdbRegisters] | None:
    """Memory and CPUs of the selected inferior, None when it is not behind kgdb."""
    connection = remote_connection()
    if connection is None or not (SETTINGS.target == "kgdb" or _has_shadow_cpu()):
        return None
    memory = DirectMapMemory(
        Line(connection).read, GdbSymbols(), lambda: current_cpu(optional=()).rip
    )
    return memory, KgdbRegisters(memory)


def _has_shadow_cpu() -> bool:
    """Whether a thread calls itself shadowCPU0, as kgdb names the idle tasks."""
    for thread in gdb.selected_inferior().threads():
        if thread.ptid[1] & 0xFFFFFFFF == _SHADOW_CPU0:
            return "shadowCPU0" in (thread.details or thread.name or "")
    return False

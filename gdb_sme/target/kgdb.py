# SPDX-License-Identifier: GPL-2.0-or-later
"""kgdb: the kernel's own stub, at the other end of a serial line.

It reads kernel memory as the CPU does, and gives general registers only (kernel/debug/gdbstub.c and
arch/x86/kernel/kgdb.c, 6.1 and 6.12). Its threads are tasks, not CPUs: the CPUs are in kgdb_info.
"""

from __future__ import annotations

import gdb

from gdb_sme.core.cr3 import CpuState
from gdb_sme.errors import ReadError, TargetError
from gdb_sme.linux.directmap import DirectMapMemory
from gdb_sme.linux.symbols import find
from gdb_sme.target.code import function_instructions
from gdb_sme.target.connection import one_line, remote_connection, send_packet
from gdb_sme.target.registers import current_cpu
from gdb_sme.target.settings import SETTINGS
from gdb_sme.target.symbols import GdbSymbols

#: The reply to `m` must fit into BUFMAX, 1024 characters (arch/x86/include/asm/kgdb.h), and the
#: stub does not look (gdb_cmd_memread()). A multiple of 8 bytes.
_CHUNK = 504

#: shadow_pid(): the idle task of CPU n is thread -(n + 2), in 32 bits (gdbstub.c).
_SHADOW_CPU0 = (1 << 32) - 2
_SHADOWS = 1 << 31

SWALLOWED = (
    "this kernel swallows kgdb's hardware breakpoints and watchpoints: perf_swevent_event() drops "
    "their events, which are never PERF_EVENT_STATE_ACTIVE (since c9bc1753b3cc, in the stable "
    "kernels of 2026); use break instead, or stop before mem_encrypt_init with kgdboc_earlycon"
)


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

    def __init__(self, memory: DirectMapMemory, symbols: GdbSymbols) -> None:
        self._memory = memory
        self._symbols = symbols

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
        # No types to look into kgdb_info with: what gdb has selected is all that is known.
        state = current_cpu()
        return (CpuState(0, state.rip, cs=state.cs, rflags=state.rflags, la57=la57),)

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
    symbols = GdbSymbols()
    memory = DirectMapMemory(Line(connection).read, symbols)
    watch_breakpoints(memory)
    return memory, KgdbRegisters(memory, symbols)


def _has_shadow_cpu() -> bool:
    """Whether a thread calls itself shadowCPU0, as kgdb names the idle tasks."""
    for thread in gdb.selected_inferior().threads():
        if thread.ptid[1] & 0xFFFFFFFF == _SHADOW_CPU0:
            return "shadowCPU0" in (thread.details or thread.name or "")
    return False


def swallows_hardware_breakpoints(symbols: GdbSymbols) -> bool:
    """Whether the kernel's code drops the events of kgdb's hardware breakpoints.

    perf_swevent_event() (kernel/events/core.c), inlined or not, then compares perf_event.state with
    PERF_EVENT_STATE_ACTIVE, which is 1.
    """
    state = symbols.field("perf_event", "state")
    if state is None:
        return False
    wanted = f"$0x1,{state.offset:#x}(%"
    for name in ("perf_bp_event", "perf_swevent_event"):
        address = symbols.address(name)
        try:
            code = function_instructions(address) if address is not None else ()
        except gdb.error as error:
            raise TargetError(f"cannot read the code of {name} ({one_line(error)})") from error
        if any(each.mnemonic == "cmpl" and each.operands.startswith(wanted) for each in code):
            return True
    return False


class _BreakpointWarning:
    """Tells once a connection when a hardware breakpoint is set that will never be reported."""

    def __init__(self) -> None:
        self._memory: DirectMapMemory | None = None
        self._connected = False

    def follow(self, memory: DirectMapMemory) -> None:
        """Watch the person's breakpoints from now on, for the target with ``memory``."""
        self._memory = memory
        if not self._connected:
            self._connected = True
            gdb.events.breakpoint_created.connect(self._created)
            gdb.events.connection_removed.connect(self._gone)

    def _gone(self, _event: object) -> None:
        self._memory = None

    def _created(self, breakpoint_: gdb.Breakpoint) -> None:
        hardware = (gdb.BP_HARDWARE_BREAKPOINT, gdb.BP_HARDWARE_WATCHPOINT)
        memory = self._memory
        if memory is None or breakpoint_.type not in hardware or not _late(memory):
            return
        if swallows_hardware_breakpoints(GdbSymbols()):
            self._memory = None
            gdb.write(f"warning: {SWALLOWED}\n", gdb.STDERR)


def _late(memory: DirectMapMemory) -> bool:
    """Whether kgdb uses perf for hardware breakpoints by now (dbg_is_early, debug_core.c)."""
    address, image = GdbSymbols().address("dbg_is_early"), memory.image
    if address is None or image is None:
        return True
    try:
        return not memory.read_virtual(image.va_of(address), 1)[0]
    except ReadError:
        return True


_WARNING = _BreakpointWarning()


def watch_breakpoints(memory: DirectMapMemory) -> None:
    """Warn of hardware breakpoints on kernels that swallow them."""
    _WARNING.follow(memory)

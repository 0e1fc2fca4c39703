# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware breakpoints over kgdb: in some kernels nobody is told when they are hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.errors import ReadError, SmeError, TargetError
from gdb_sme.target.connection import one_line, remote_connection

if TYPE_CHECKING:
    from gdb_sme.target.symbols import GdbSymbols

SWALLOWED = (
    "this kernel swallows kgdb's hardware breakpoints and watchpoints: perf_swevent_event() drops "
    "their events, which are never PERF_EVENT_STATE_ACTIVE (since c9bc1753b3cc, in the stable "
    "kernels of 2026); use break instead, or stop before mem_encrypt_init with kgdboc_earlycon"
)

_HARDWARE = (
    gdb.BP_HARDWARE_BREAKPOINT,
    gdb.BP_HARDWARE_WATCHPOINT,
    gdb.BP_READ_WATCHPOINT,
    gdb.BP_ACCESS_WATCHPOINT,
)


class BreakpointWarning:
    """Tells once a connection when a hardware breakpoint is set that will never be reported."""

    def __init__(self) -> None:
        self._told = False

    def created(self, breakpoint_: gdb.Breakpoint) -> None:
        """For gdb's event: look at what the person has set, if it is at kgdb that it is."""
        if self._told or breakpoint_.type not in _HARDWARE or not breakpoint_.visible:
            return
        if remote_connection() is None:
            return
        try:
            self._told = _swallowed()
        except SmeError as error:
            gdb.write(f"warning: whether kgdb will report it is not known: {error}\n", gdb.STDERR)
            return
        if self._told:
            gdb.write(f"warning: {SWALLOWED}\n", gdb.STDERR)

    def disconnected(self, _event: object = None) -> None:
        """The next connection may lead to another kernel."""
        self._told = False


def _swallowed() -> bool:
    """Whether the target is kgdb, of a kernel that drops its hardware breakpoints."""
    from gdb_sme.target import kgdb
    from gdb_sme.target.symbols import GdbSymbols

    found = kgdb.connect()
    if found is None:
        return False
    memory, _registers = found
    symbols = GdbSymbols()
    address, image = symbols.address("dbg_is_early"), memory.image
    if address is not None and image is not None:
        # Until kgdb uses perf, it sets the debug registers itself (kernel/debug/debug_core.c).
        try:
            if memory.read_virtual(image.va_of(address), 1)[0]:
                return False
        except ReadError:
            pass
    return drops_events(symbols)


def drops_events(symbols: GdbSymbols) -> bool:
    """Whether the kernel's code drops the events of kgdb's hardware breakpoints.

    perf_swevent_event() (kernel/events/core.c), inlined or not, then compares perf_event.state with
    PERF_EVENT_STATE_ACTIVE, which is 1.

    Raises:
        TargetError: the code cannot be read.
    """
    from gdb_sme.target.code import function_instructions

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


WARNING = BreakpointWarning()

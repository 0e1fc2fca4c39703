# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware breakpoints that answer and go on, without stopping the person's session."""

from __future__ import annotations

from collections.abc import Callable

import gdb


class Probe(gdb.Breakpoint):
    """An invisible hardware breakpoint at an address; ``on_hit`` is called and the target goes on.

    Hardware, because the decompressor writes the kernel over software breakpoints, and because the
    address may be physical, where nothing is mapped yet.

    Args:
        address: where, as the CPU will have it in RIP.
        on_hit: called at each hit, with the target stopped there.
    """

    def __init__(self, address: int, on_hit: Callable[[], None]) -> None:
        super().__init__(f"*{address:#x}", type=gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        self.silent = True
        self._on_hit = on_hit
        self._retired = False

    #: Probes whose `stop` is running now, in which gdb allows no breakpoint to be deleted.
    _stopping = 0

    def stop(self) -> bool:
        """Called by gdb at a hit: never stops."""
        Probe._stopping += 1
        try:
            if not self._retired:
                self._on_hit()
        finally:
            Probe._stopping -= 1
        return False

    def retire(self) -> None:
        """Delete now, or, from within any probe's `stop`, disable now and delete right after."""
        if self._retired:
            return
        self._retired = True
        if not Probe._stopping:
            self._delete()
        elif self.is_valid():
            self.enabled = False
            gdb.post_event(self._delete)

    def _delete(self) -> None:
        if self.is_valid():
            self.delete()


def register(name: str) -> int:
    """A register of the CPU that hit a probe, unsigned 64 bits."""
    return int(gdb.newest_frame().read_register(name)) & ((1 << 64) - 1)


def set_register(name: str, value: int) -> None:
    """Set a register of the CPU that hit a probe."""
    gdb.execute(f"set var ${name} = {value:#x}")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware watchpoints that answer and go on, without stopping the person's session."""

from __future__ import annotations

from collections.abc import Callable

import gdb

from gdb_sme.errors import TargetError
from gdb_sme.target.probe import Silent


class Watch(Silent):
    """An invisible hardware watchpoint on writes; ``on_write`` is called after each.

    gdb also reports a change when the address merely became readable: compare values, not hits.

    Args:
        address: first byte, as the CPU addresses it now (virtual, or identity).
        size: 1, 2, 4 or 8 bytes.
        on_write: called with the target stopped behind the write.

    Raises:
        TargetError: there is no hardware watchpoint left.
    """

    def __init__(self, address: int, size: int, on_write: Callable[[], bool | None]) -> None:
        kind = {1: "char", 2: "short", 4: "int", 8: "long"}[size]
        super().__init__(
            f"*(unsigned {kind} *) {address:#x}",
            on_write,
            type=gdb.BP_WATCHPOINT,
            wp_class=gdb.WP_WRITE,
        )
        if self.type != gdb.BP_HARDWARE_WATCHPOINT:
            # A software watchpoint would single-step the whole boot.
            self.retire()
            raise TargetError("no hardware watchpoint is left on this target")

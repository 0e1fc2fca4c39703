# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUs of a stopped target: QEMU's stub shows each as a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gdb

from gdb_sme.core.cr3 import CpuState
from gdb_sme.errors import TargetError
from gdb_sme.target.connection import one_line

_OPTIONAL = ("cs", "cr0", "cr2", "cr3", "cr4", "efer", "gs_base")


@contextmanager
def kept_selection() -> Iterator[None]:
    """Keep the selected thread and frame of the person over the block."""
    thread = gdb.selected_thread()
    frame = gdb.selected_frame()
    try:
        yield
    finally:
        thread.switch()
        if frame.is_valid():
            frame.select()


def read_register(frame: gdb.Frame, name: str) -> int | None:
    """Register ``name`` as an unsigned number, None where the target does not have it."""
    try:
        value = frame.read_register(name)
    except ValueError:
        return None
    if value.is_optimized_out or value.type.sizeof == 0 or value.type.code == gdb.TYPE_CODE_VOID:
        return None
    try:
        # Control registers are flag types, which do not convert to int: take their bytes.
        number = value.cast(gdb.lookup_type("unsigned long")) if _is_flags(value) else value
        return int(number) & ((1 << 8 * value.type.sizeof) - 1)
    except gdb.error:
        return None  # "Could not fetch register": listed in the description, not to be had


def _is_flags(value: gdb.Value) -> bool:
    return bool(value.type.code == gdb.TYPE_CODE_FLAGS)


class GdbRegisters:
    """`gdb_sme.core.ports.Registers` over the threads of the selected inferior."""

    @property
    def current(self) -> int:
        """Index of the selected thread's CPU."""
        return _index(gdb.selected_thread())

    def cpus(self) -> tuple[CpuState, ...]:
        """See `gdb_sme.core.ports.Registers.cpus`."""
        threads = sorted(gdb.selected_inferior().threads(), key=_index)
        with kept_selection():
            return tuple(_state(thread) for thread in threads)


def current_cpu(optional: tuple[str, ...] = _OPTIONAL) -> CpuState:
    """The state of the CPU that is selected in gdb, without touching the selection.

    Args:
        optional: the registers to ask for beside rip and eflags.
    """
    return _read(gdb.selected_thread(), optional)


def _index(thread: gdb.InferiorThread) -> int:
    return int(thread.num) - 1


def _state(thread: gdb.InferiorThread) -> CpuState:
    thread.switch()
    return _read(thread)


def _read(thread: gdb.InferiorThread, names: tuple[str, ...] = _OPTIONAL) -> CpuState:
    """The state of the CPU that is selected, which is ``thread``'s."""
    try:
        frame = gdb.newest_frame()
        rip = read_register(frame, "rip")
        rflags = read_register(frame, "eflags")
        optional: dict[str, Any] = {name: read_register(frame, name) for name in names}
    except gdb.error as error:
        raise TargetError(
            f"cannot read the registers of CPU {_index(thread)} ({one_line(error)})"
        ) from error
    if rip is None:
        raise TargetError(f"CPU {_index(thread)} has no rip; is this an x86-64 target?")
    return CpuState(index=_index(thread), rip=rip, rflags=rflags, **optional)

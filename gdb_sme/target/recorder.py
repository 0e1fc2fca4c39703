# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the events of a trace in their order, each with what is read at its stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gdb

from gdb_sme.core.ports import Range
from gdb_sme.linux import tables
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import BootStage, Stage, boot_stage
from gdb_sme.linux.trace import OLD_NAMES, WATCHED, Event, Moment, Place, Timeline, Write
from gdb_sme.target.followed import (
    FollowedKernel,
    RememberedSymbols,
    symbol_address,
    with_symbols_at,
)
from gdb_sme.target.qemu import QemuPhysMemory
from gdb_sme.target.registers import current_cpu

_IN_COPY = BootStage(Stage.IDENTITY, "sme_encrypt_execute, in its copy behind the kernel")


class Recorder:
    """The events so far, and the kernel to read the next one from.

    Args:
        memory: guest physical memory.
        symbols: the symbol file's view.
        report: called with each event as it happens.

    Attributes:
        image: where the kernel lies, None until its entry.
        copy: where sme_encrypt_execute has put its copy, an empty range until then.
        values: the watched variables that the kernel has, with the values seen last.
        unwatched: names of those whose writes no watchpoint sees.
        notes: what could not be seen.
    """

    def __init__(
        self, memory: QemuPhysMemory, symbols: RememberedSymbols, report: Callable[[Event], None]
    ) -> None:
        self._memory = memory
        self._symbols = symbols
        self._report = report
        self._events: list[Event] = []
        self._pcs: list[int] = []
        self._stale = False
        self._changed = False
        self.image: KernelImage | None = None
        self.copy = Range(0, 0)
        self.values: dict[str, int] = {}
        self.unwatched: set[str] = set()
        self.notes: list[str] = []

    def begin(self, image: KernelImage) -> Kernel:
        """The kernel is found: take the values that its variables have now."""
        self.image = image
        kernel = self.kernel()
        self.values = {
            name: value
            for name in (*WATCHED, *OLD_NAMES)
            if (value := kernel.read_symbol(name)) is not None
        }
        missing = [name for name in WATCHED if name not in self.values]
        if missing:
            self.notes.append(f"not in this kernel: {', '.join(missing)}")
        return kernel

    def timeline(self, complete: bool, state: str) -> Timeline:
        """What was recorded so far."""
        self._refresh()
        events = tuple(
            replace(event, place=replace(event.place, source=self._source(pc)))
            for event, pc in zip(self._events, self._pcs, strict=True)
        )
        return Timeline(events, complete, state, tuple(self.notes))

    def symbols_changed(self) -> None:
        """The symbol file is being loaded anew; where to, gdb knows when it is done."""
        self._stale = True

    def memory_changed(self) -> None:
        """Somebody wrote to memory unseen: what was written is noticed at the next event."""
        self._changed = True

    def kernel(self) -> Kernel:
        """The kernel at this stop."""
        self._refresh()
        assert self.image is not None
        return FollowedKernel(self._memory, self._symbols, current_cpu(), self.image)

    def place(self, kernel: Kernel) -> Place:
        """Where the CPU is that stopped; its source line is looked up later."""
        cpu = kernel.cpus[0]
        with self._memory.batch():
            cr3 = kernel.cr3(cpu)
            table = tables.identify(kernel, cr3.pa, cpu) if cr3 is not None else None
            stage = _IN_COPY if cpu.rip in self.copy else boot_stage(kernel)
            mask = kernel.read_symbol("sme_me_mask") or 0
        return Place(
            pc=cpu.rip,
            function=self.function(cpu.rip),
            source=None,
            cpu=cpu.index,
            cr3=cpu.cr3 or 0,
            table=table.name if table else None,
            stage=str(stage),
            mask=mask,
        )

    def function(self, pc: int) -> str:
        """The function of a run-time address, identity or virtual."""
        assert self.image is not None
        if pc in self.copy:
            return f"__enc_copy+{pc - self.copy.start} (copied)"
        nearest = self._symbols.nearest(symbol_address(self.image, pc))
        if nearest is None:
            return f"{pc:#x}"
        return f"{nearest[0]}+{nearest[1]}" if nearest[1] else nearest[0]

    def _source(self, pc: int) -> str | None:
        """Source file and line; looked up late, because gdb reads much debug information for it."""
        if self.image is None or pc in self.copy:
            return None
        line = gdb.find_pc_line(symbol_address(self.image, pc))
        return f"{line.symtab.filename}:{line.line}" if line.symtab is not None else None

    def add(self, kernel: Kernel, event: Event) -> None:
        """Keep an event, behind the writes that nobody saw until now."""
        # Watchpoints see what the guest writes, but not what the person does.
        changed, self._changed = self._changed, False
        for name in self.values if changed else self.unwatched:
            self.compare(kernel, event.place, name, noticed=True)
        self._append(replace(event, number=len(self._events) + 1))

    def _append(self, event: Event) -> None:
        self._events.append(event)
        self._pcs.append(event.place.pc)
        self._report(event)

    def compare(self, kernel: Kernel, place: Place | None, name: str, noticed: bool) -> None:
        """Keep a write if variable ``name`` has another value than before."""
        new, old = kernel.read_symbol(name), self.values[name]
        if new is None or new == old:
            return
        self.values[name] = new
        place = place or self.place(kernel)
        self._append(Write(len(self._events) + 1, place, name, old, new, noticed))

    def _refresh(self) -> None:
        if not self._stale:
            return
        self._stale = False
        self._symbols.forget()
        text = self._symbols.address("_text")
        if self.image is not None and text is not None:
            self.image = with_symbols_at(self.image, text)

    def notice(self, kernel: Kernel) -> None:
        """Keep the writes that no watchpoint told of, as of this stop."""
        for name in self.values:
            self.compare(kernel, None, name, noticed=True)

    def look(self) -> None:
        """With the target standing: note what was changed unseen since the last event."""
        kernel = self.kernel()
        self.notice(kernel)
        place = self.place(kernel)
        last = self._events[-1].place if self._events else place
        if place.cpu == last.cpu and place.mask & place.cr3 != place.mask & last.cr3:
            self._append(Moment(len(self._events) + 1, place, "the target stands here"))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the events of a trace in their order, each with what is read at its stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import gdb

from gdb_sme.core.ports import Range
from gdb_sme.errors import SmeError
from gdb_sme.linux import tables
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import BootStage, Stage, boot_stage
from gdb_sme.linux.trace import (
    OLD_NAMES,
    WATCHED,
    Event,
    Moment,
    Place,
    Rule,
    Timeline,
    Write,
)
from gdb_sme.target.followed import RememberedSymbols, symbol_address, with_symbols_at
from gdb_sme.target.probe import register

_IN_COPY = BootStage(Stage.IDENTITY, "sme_encrypt_execute, in its copy behind the kernel")


class Recorder:
    """The events so far, and the kernel to read the next one from.

    Args:
        at_stop: the kernel at this stop, which lies where it is given.
        symbols: the symbol file's view.
        report: called with each event as it happens.
        look: what else changed since the event of the given number, to be kept before another.

    Attributes:
        image: where the kernel lies, None until its entry.
        copy: where sme_encrypt_execute has put its copy, an empty range until then.
        values: the watched variables that the kernel has, with the values seen last.
        unwatched: names of those whose writes no watchpoint sees.
        notes: what could not be seen.
    """

    def __init__(
        self,
        at_stop: Callable[[KernelImage], Kernel],
        symbols: RememberedSymbols,
        report: Callable[[Event], None],
        look: Callable[[Kernel, Place, int], Iterable[Event]] = lambda *_: (),
    ) -> None:
        self._at_stop = at_stop
        self._symbols = symbols
        self._report = report
        self._look = look
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

    def timeline(
        self, complete: bool, state: str, rules: tuple[Rule, ...] | None = None
    ) -> Timeline:
        """What was recorded so far."""
        self._refresh()
        events = tuple(
            replace(event, place=replace(event.place, source=self._source(pc)))
            for event, pc in zip(self._events, self._pcs, strict=True)
        )
        return Timeline(events, complete, state, tuple(self.notes), rules)

    @property
    def last(self) -> Event | None:
        """The last event, None before the first."""
        return self._events[-1] if self._events else None

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
        return self._at_stop(self.image)

    def place(self, kernel: Kernel) -> Place:
        """Where the CPU is that stopped; its source line is looked up later."""
        cpu = kernel.cpus[0]
        with kernel.memory.batch():
            cr3 = kernel.cr3(cpu)
            if cr3 is not None:
                table = tables.identify(kernel, cr3.pa, cpu)
            else:
                table = tables.kernels_table(kernel, cpu)
            stage = _IN_COPY if cpu.rip in self.copy else boot_stage(kernel)
            mask = kernel.read_symbol("sme_me_mask") or 0
        return Place(
            pc=cpu.rip,
            function=self.function(cpu.rip),
            source=None,
            cpu=cpu.index,
            cr3=cpu.cr3,
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
        """Keep an event, behind what changed unseen until now."""
        since = len(self._events)
        # Watchpoints see what the guest writes, but not what the person does.
        changed, self._changed = self._changed, False
        for name in self.values if changed else self.unwatched:
            self.compare(kernel, event.place, name, noticed=True, since=since)
        self._keep_changes(kernel, event.place, since)
        self._append(replace(event, number=len(self._events) + 1))

    def start(self, kernel: Kernel, event: Event) -> None:
        """Keep the first event of a trace, and behind it what there is to be compared later."""
        self._append(replace(event, number=1))
        self._keep_changes(kernel, event.place, 0)

    def _keep_changes(self, kernel: Kernel, place: Place, since: int) -> None:
        for change in self._look(kernel, place, since):
            self._append(replace(change, number=len(self._events) + 1))

    def _append(self, event: Event) -> None:
        self._events.append(event)
        self._pcs.append(event.place.pc)
        self._report(event)

    def compare(
        self, kernel: Kernel, place: Place | None, name: str, noticed: bool, since: int = 0
    ) -> None:
        """Keep a write if variable ``name`` has another value than before."""
        new, old = kernel.read_symbol(name), self.values[name]
        if new is None or new == old:
            return
        self.values[name] = new
        place = place or self.place(kernel)
        self._append(Write(len(self._events) + 1, place, name, old, new, noticed, since))

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
        since = len(self._events)
        for name in self.values:
            self.compare(kernel, None, name, noticed=True, since=since)

    def look(self) -> None:
        """With the target standing: note what was changed unseen since the last event."""
        kernel, since = self.kernel(), len(self._events)
        self.notice(kernel)
        place = self.place(kernel)
        self._keep_changes(kernel, place, since)
        last = self._events[-1].place if self._events else place
        if place.cr3 is None or last.cr3 is None or place.cpu != last.cpu:
            return
        if place.mask & place.cr3 != place.mask & last.cr3:
            self._append(Moment(len(self._events) + 1, place, "the target stands here"))


def panic_text(kernel: Kernel) -> str:
    """What panic() was called with, empty when it cannot be read: to be asked at its entry."""
    try:
        raw = kernel.read_virtual(register("rdi"), 80)
    except SmeError:
        return ""
    # A format: what comes from its first argument on is not in it.
    return raw.partition(b"\0")[0].decode("ascii", "replace").partition("%")[0].strip()

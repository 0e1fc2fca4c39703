# SPDX-License-Identifier: GPL-2.0-or-later
"""Records the timeline of a boot over kgdb: with int3 alone, and by comparing stop with stop.

kgdb's hardware breakpoints and watchpoints are lost in current stable kernels (`hardware`), and it
has no CR3. Where an int3 may stand, and for how long, is what `int3` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gdb

from gdb_sme.errors import SymbolError, TargetError
from gdb_sme.linux import tables
from gdb_sme.linux.compared import Compared, protection_map
from gdb_sme.linux.directmap import DirectMapMemory
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import initmem_freed
from gdb_sme.linux.symbols import find
from gdb_sme.linux.tables import Kind
from gdb_sme.linux.trace import Begin, Cr3Load, Event, Moment, Timeline
from gdb_sme.linux.trace_kgdb import RULES
from gdb_sme.target.followed import FollowedKernel, RememberedSymbols
from gdb_sme.target.int3 import INT3, entry_of, last_places, serves_kgdb, takes_int3
from gdb_sme.target.kgdb import KgdbRegisters
from gdb_sme.target.probe import register
from gdb_sme.target.probes import Code, Probes
from gdb_sme.target.recorder import Recorder, panic_text

#: What a trace over kgdb cannot know: said when it begins, and below every timeline.
UNSEEN = (
    "over kgdb: nothing is seen of what came before it began",
    "over kgdb: no CR3; what is loaded into it is seen where init_mem_mapping() loads it, and the "
    "table is the one that the kernel's variables name",
    "over kgdb: no watchpoints; variables and tables are compared at each stop, and a change is "
    "placed between two of them",
    "over kgdb: no early page faults and exceptions, since kgdb itself needs their handlers",
)

#: Functions whose entry is a moment, once. All are called long after kgdb can begin, and none is
#: part of how an exception, or kgdb, is served.
_MOMENTS = ("cleanup_highmap", "init_mem_mapping", "paging_init", "trap_init", "mem_encrypt_init")
#: Functions that change the encryption of pages: what their second argument counts.
_CHANGES = {
    "set_memory_encrypted": "pages",
    "set_memory_decrypted": "pages",
    "early_set_memory_encrypted": "bytes",
    "early_set_memory_decrypted": "bytes",
}
#: Functions of the boot that load CR3 once, and in which kgdb is not needed meanwhile.
_LOADERS = ("init_mem_mapping", "kasan_init")
#: Where the trace ends by itself.
DEFAULT_UNTIL = "rest_init"


class KgdbTracer:
    """One trace, from where the machine stands in kgdb.

    Args:
        memory: kernel memory over the line.
        kernel: the kernel at this stop.
        until: location in gdb's words at which the trace ends; None for `DEFAULT_UNTIL`.
        report: called with each event as it happens.

    Raises:
        TargetError: there is no such location as ``until``.
        SymbolError: there are no symbols to trace with, or they are not those of this kernel.
    """

    def __init__(
        self,
        memory: DirectMapMemory,
        kernel: Kernel,
        until: str | None,
        report: Callable[[Event], None],
    ) -> None:
        self._memory = memory
        self._registers = KgdbRegisters(memory)
        self._symbols = RememberedSymbols()
        self._code = Code(self._symbols)
        self._record = Recorder(self._at_stop, self._symbols, report, Compared().look)
        self._probes = Probes(self._record.notes.append, software=True)
        self._runs = False
        self.state = "recording"
        ends = self._ends(kernel, until)
        if kernel.image is None:
            raise SymbolError(
                "the kernel in kgdb is not found by the symbols' build-id; load its vmlinux"
            )
        self._record.notes += UNSEEN
        now = self._record.begin(kernel.image)
        # No watchpoint tells of a write: all are compared at each event.
        self._record.unwatched |= set(self._record.values)
        self._begin(now)
        self._arm(now, ends)

    @property
    def timeline(self) -> Timeline:
        """What was recorded so far."""
        return self._record.timeline(False, self.state, RULES)

    @property
    def active(self) -> bool:
        """Whether it still records."""
        return bool(self._probes)

    @property
    def left(self) -> str:
        """What kgdb still has set if the line is cut now, in words; empty for nothing.

        Nothing while the machine stands at gdb's prompt: gdb has taken all back for that long.
        """
        if not self._runs or not self.active:
            return ""
        places = sorted(self._probes.places)
        where = ", ".join(map(self._record.function, places))
        return (
            f"kgdb still has {len(places)} breakpoints (int3) in the kernel, at {where}; the "
            "machine waits in kgdb, or will where it meets one, and kgdb takes all of them back "
            "when gdb connects again"
        )

    def end(self, why: str) -> None:
        """Take all breakpoints back and keep what was recorded."""
        if not self.active:
            return
        self._probes.retire()
        self.state = why

    def symbols_changed(self) -> None:
        """The symbol file is being loaded anew; where to, gdb knows when it is done."""
        self._record.symbols_changed()

    def memory_changed(self) -> None:
        """The person wrote to memory: all is compared at each event anyway."""

    def continued(self) -> None:
        """The machine runs, with the breakpoints in its text."""
        self._runs = True

    def stopped(self, event: gdb.StopEvent) -> None:
        """The machine stands: note it when the kernel went into kgdb by itself."""
        self._runs = False
        if self.active and not isinstance(event, gdb.BreakpointEvent):
            self._probes.guarded(self._entered)(event)

    def look(self) -> None:
        """With the machine standing: note what changed since the last event."""
        if self.active:
            self._probes.guarded(self._record.look)()

    # -- arming ----------------------------------------------------------------------------------

    def _at_stop(self, image: KernelImage) -> Kernel:
        self._memory.new_stop(self._symbols)
        cpu = self._registers.cpus()[self._registers.current]
        return FollowedKernel(self._memory, self._symbols, cpu, image, self._memory.read_virtual)

    def _ends(self, kernel: Kernel, until: str | None) -> tuple[int, ...]:
        """Where the trace ends, as distances from _text; where it would end by itself, if ahead."""
        if until is None and initmem_freed(kernel):
            return ()
        ends = self._code.locations(until, DEFAULT_UNTIL)
        text = self._symbols.address("_text") or 0
        if until is None:
            ends = tuple(entry_of(text + end) - text for end in ends)
        if initmem_freed(kernel) and any(self._code.in_init_text(text + end) for end in ends):
            raise TargetError(f"--until {until}: the kernel has freed its .init code already")
        if any(serves_kgdb(self._symbols, text + end) for end in ends):
            raise TargetError(
                f"--until {until}: an int3 there would be the end of the machine, since kgdb, or "
                "what serves exceptions, runs through it; choose another place"
            )
        return ends

    def _begin(self, kernel: Kernel) -> None:
        place = self._record.place(kernel)
        values = tuple(self._record.values.items())
        self._record.start(kernel, Begin(1, place, values, protection_map(kernel)))

    def _arm(self, kernel: Kernel, ends: tuple[int, ...]) -> None:
        """Set all breakpoints, those that may be set only."""
        image = kernel.image
        assert image is not None
        freed = initmem_freed(kernel)
        for name in () if freed else _MOMENTS:
            self._at_function(image, name, partial(self._add, name), once=True)
        for name, unit in _CHANGES.items():
            found = find(self._symbols, name)
            if found is not None and not (freed and self._code.in_init_text(found[1])):
                self._at_function(image, name, partial(self._at_change, name, unit))
        self._at_function(image, "panic", self._at_panic)
        for address, source in ({} if freed else self._code.cr3_loads(_LOADERS)).items():
            self._at(image.va_of(address), partial(self._at_cr3_load, source), once=True)
        self._arm_last(kernel, image)
        for end in ends:  # last, so that a moment at the same place is recorded before
            self._at(image.va_of(image.text + end), self._at_until)

    def _arm_last(self, kernel: Kernel, image: KernelImage) -> None:
        """End before kgdb loses what is set."""
        names = last_places(kernel)
        last = next((name for name in names if find(self._symbols, name) is not None), None)
        if last is not None:
            self._at_function(image, last, self._at_last)
        elif names:
            raise TargetError(
                f"none of {', '.join(names)} is in the symbol file: where breakpoints must be "
                "taken back, before the kernel write-protects its text, is not known"
            )

    def _at_function(
        self, image: KernelImage, name: str, on_hit: Callable[[], bool | None], once: bool = False
    ) -> None:
        found = find(self._symbols, name)
        if found is not None:
            self._at(image.va_of(entry_of(found[1])), on_hit, once)

    def _at(self, va: int, on_hit: Callable[[], bool | None], once: bool = False) -> None:
        """Probe ``va`` if kgdb takes a breakpoint there."""
        if not takes_int3(va):
            self._record.notes.append(
                f"kgdb refuses a breakpoint at {self._record.function(va)}: not seen"
            )
        elif once:
            self._probes.once_at(va, on_hit)
        else:
            self._probes.at(va, on_hit)

    # -- what happened ---------------------------------------------------------------------------

    def _add(self, name: str, detail: str = "") -> None:
        kernel = self._record.kernel()
        self._record.add(kernel, Moment(0, self._record.place(kernel), name, detail))

    def _at_change(self, name: str, unit: str) -> None:
        self._add(name, f"{register('rdi'):#x}, {register('rsi') & 0xFFFFFFFF} {unit}")

    def _at_panic(self) -> None:
        self._add("panic", panic_text(self._record.kernel()))

    def _entered(self, event: gdb.StopEvent) -> None:
        """By an exception, which gdb has as a signal, or by the int3 in kgdb_breakpoint()."""
        pc = register("rip")
        if isinstance(event, gdb.SignalEvent):
            self._add("kgdb is entered", event.stop_signal)
        elif self._record.function(pc).startswith("kgdb_breakpoint+") and (
            # Right behind it: the person has not stepped on.
            self._record.kernel().read_virtual(pc - 1, 1) == INT3
        ):
            self._add("kgdb is entered")

    def _at_cr3_load(self, source: str) -> None:
        kernel = self._record.kernel()
        value, place = register(source), self._record.place(kernel)
        pa = kernel.table_enc.address(value) & ~place.mask
        known = (tables.early_table(kernel), tables.init_table(kernel))
        table = next((each for each in known if each is not None and each.pa == pa), None)
        name, kind = (table.name, table.kind) if table is not None else (None, None)
        self._record.add(kernel, Cr3Load(0, place, value, name, kind))
        if kind is Kind.INIT:
            self._record.add(kernel, Moment(0, place, f"{name} takes over"))

    def _at_end(self) -> str:
        """Where the trace ends, which is the last moment of it."""
        pc, last = register("rip"), self._record.last
        where = self._record.function(pc)
        if not (isinstance(last, Moment) and last.place.pc == pc):  # it is one of its own
            self._add(where)
        return where

    def _at_until(self) -> bool:
        return self._stand(f"ended at {self._at_end()}; all breakpoints are removed")

    def _at_last(self) -> bool:
        return self._stand(
            f"ended at {self._at_end()}: kgdb cannot take back later what is set when the kernel "
            "frees .init and write-protects its text; all breakpoints are removed"
        )

    def _stand(self, why: str) -> bool:
        """End, and let the machine stand: Ctrl-C does not stop it later."""
        self.end(why)
        gdb.write(f"the trace {why}; the machine stands there\n")
        return True

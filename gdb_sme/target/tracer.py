# SPDX-License-Identifier: GPL-2.0-or-later
"""Records the timeline of an early boot with invisible breakpoints and watchpoints.

They are set in two parts: from the kernel's entry on at identity addresses, and from the first load
of the kernel's own table on at virtual ones, because QEMU breaks at and watches virtual addresses,
and because every breakpoint and watchpoint that is set makes the guest slower (docs/trace.md).
Nothing is set before the entry: the decompressor writes the same addresses while it unpacks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gdb

from gdb_sme.core.address import U64
from gdb_sme.core.paging import ENTRY_SIZE
from gdb_sme.core.ports import Range
from gdb_sme.errors import SmeError, TargetError
from gdb_sme.linux import tables
from gdb_sme.linux.compared import protection_map
from gdb_sme.linux.fixups import FIXED_UP, early_tables, fix_ups
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import Stage, boot_stage, initmem_freed, page_offset_base
from gdb_sme.linux.symbols import find
from gdb_sme.linux.tables import Kind
from gdb_sme.linux.trace import (
    OLD_NAMES,
    WATCHED,
    Cr3Load,
    EarlyException,
    EarlyMapping,
    Event,
    Moment,
    Place,
    Timeline,
    through_va,
)
from gdb_sme.target.code import cr3_loads
from gdb_sme.target.connection import one_line
from gdb_sme.target.entry import BZIMAGE_ENTRY_64, EntryFinder, at_identity
from gdb_sme.target.followed import FollowedKernel, RememberedSymbols
from gdb_sme.target.probe import register
from gdb_sme.target.probes import Code, Probes
from gdb_sme.target.qemu import QemuPhysMemory
from gdb_sme.target.recorder import Recorder, panic_text
from gdb_sme.target.registers import current_cpu
from gdb_sme.target.watch import Watch

#: Functions whose entry is a moment of the timeline: those that run at identity addresses, ...
_IDENTITY_MOMENTS = ("sme_enable", "__startup_64", "sme_encrypt_kernel")
#: ... and those that run at virtual ones.
_MOMENTS = (
    "reset_early_page_tables",
    "sme_early_init",
    "idt_setup_early_handler",
    "start_kernel",
    "init_mem_mapping",
    "mem_encrypt_init",
    "panic",
)
#: It runs again when early_dynamic_pgts is used up.
_REPEATED = "reset_early_page_tables"
#: Functions that load CR3 at identity addresses, ...
_IDENTITY_LOADERS = (
    "startup_64",
    "secondary_startup_64",
    "secondary_startup_64_no_verify",
    "common_startup_64",
    "sev_verify_cbit",
)
#: ... and at virtual ones, where secondary CPUs go through the first ones too. A kernel has those
#: it has: the rest are inlined.
_LOADERS = (
    *_IDENTITY_LOADERS,
    "x86_64_start_kernel",
    "reset_early_page_tables",
    "init_mem_mapping",
    "load_cr3",
    "native_write_cr3",
    "write_cr3",
    "kasan_init",
)
#: The loader of CR3 inside sme_encrypt_execute runs in a copy, this far behind sme_workarea (its
#: argument in RCX): arch/x86/mm/mem_encrypt_boot.S (6.1 and 6.12).
_ENC_COPY_OFFSET, _WORKAREA_COPY_END = 0x1000, 0x2000
#: Exceptions of an address that is not canonical: #SS and #GP.
_NO_ADDRESS = (12, 13)
#: struct pt_regs, 8 bytes each, up to the instruction pointer (arch/x86/include/asm/ptrace.h, 6.1).
# fmt: off
_PT_REGS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip",
)
# fmt: on

#: Where the trace ends by itself: the boot CPU's early boot is over.
DEFAULT_UNTIL = "rest_init"


class Tracer:
    """One trace, from the kernel's entry to its end.

    Args:
        memory: guest physical memory.
        kernel: the kernel at this stop.
        until: location in gdb's words at which the trace ends; None for `DEFAULT_UNTIL`.
        report: called with each event as it happens.

    Raises:
        TargetError: there is no such location as ``until``.
        SymbolError: there are no symbols to trace with.
    """

    def __init__(
        self,
        memory: QemuPhysMemory,
        kernel: Kernel,
        until: str | None,
        report: Callable[[Event], None],
    ) -> None:
        self._memory = memory
        self._symbols = RememberedSymbols()
        self._code = Code(self._symbols)
        self._record = Recorder(self._at_stop, self._symbols, report)
        self._probes = Probes(self._record.notes.append)
        self._identity = Probes(self._record.notes.append)
        self._before: dict[str, bytes] = {}
        self._virtual = False
        self._watches: dict[str, Watch] = {}
        self._init_took_over = False
        self._protection_watch: Watch | None = None
        self._finder: EntryFinder | None = None
        self.complete = True
        self.state = "armed: waiting for the kernel's entry"
        self._until = self._code.locations(until, DEFAULT_UNTIL)
        stage = boot_stage(kernel)
        if stage.stage < Stage.IDENTITY or kernel.image is None:
            self._finder = EntryFinder(memory, self._symbols, self._probes.guarded(self._at_entry))
            self._look_up()
            return
        startup = find(self._symbols, "startup_64")
        at_entry = startup is not None and kernel.cpus[0].rip == kernel.image.pa_of(startup[1])
        if not at_entry:
            self.complete = False
            self._record.notes.append(
                f"started late, at stage {stage}: what came before cannot be seen; "
                "what comes from here on is recorded"
            )
        image = kernel.image
        if stage.stage is Stage.IDENTITY:
            image = at_identity(memory, self._symbols, image)
        self._begin(image, stage.stage)

    @property
    def timeline(self) -> Timeline:
        """What was recorded so far."""
        return self._record.timeline(self.complete, self.state)

    @property
    def active(self) -> bool:
        """Whether it still records."""
        return self._finder is not None or bool(self._probes)

    def end(self, why: str) -> None:
        """Take all breakpoints back and keep what was recorded."""
        if not self.active:
            return
        if self._finder is not None:
            self._finder.cancel()
            self._finder = None
        self._probes.retire()
        self._identity.retire()
        self.state = why

    def symbols_changed(self) -> None:
        """The symbol file is being loaded anew; where to, gdb knows when it is done."""
        self._record.symbols_changed()

    def memory_changed(self) -> None:
        """The person wrote to memory: what was written is noticed at the next event."""
        self._record.memory_changed()

    @property
    def left(self) -> str:
        """Nothing: QEMU's stub takes back what a gdb that leaves has set."""
        return ""

    def continued(self) -> None:
        """The target runs."""

    def stopped(self, _event: gdb.StopEvent) -> None:
        """The target stands: a Ctrl-C may have kept a watchpoint from being asked, or lost it."""
        if self.active and self._record.image is not None:
            self._probes.guarded(lambda: self._record.notice(self._record.kernel()))()
            self._record.unwatched |= {name for name, w in self._watches.items() if w.lost}

    def look(self) -> None:
        """With the target standing: note what was changed unseen since the last event."""
        if self.active and self._record.image is not None:
            self._probes.guarded(self._record.look)()

    def _at_stop(self, image: KernelImage) -> Kernel:
        return FollowedKernel(self._memory, self._symbols, current_cpu(), image)

    # -- arming ----------------------------------------------------------------------------------

    def _look_up(self) -> None:
        """Ask for all symbols and code now, while the person waits anyway, and not in the boot."""
        others = ("sme_encrypt_execute", "__enc_copy", "early_fixup_exception", "protection_map")
        for name in (*WATCHED, *OLD_NAMES, *_IDENTITY_MOMENTS, *_MOMENTS, *FIXED_UP, *others):
            find(self._symbols, name)
            self._symbols.size(name)
        self._code.cr3_loads(_LOADERS)

    def _at_entry(self, image: KernelImage) -> None:
        self._begin(image, Stage.IDENTITY)

    def _begin(self, image: KernelImage, stage: Stage) -> None:
        self._finder = None
        self.state = "recording"
        self._virtual = False
        kernel = self._record.begin(image)
        if stage > Stage.IDENTITY:
            self._go_virtual(kernel)
        else:
            self._before = early_tables(kernel)
            self._go_identity()
        self._probes.at(BZIMAGE_ENTRY_64, self._at_reset)

    def _go_identity(self) -> None:
        """Set what sees the code that runs at identity addresses."""
        assert self._record.image is not None
        image = self._record.image
        self._watch(image.pa_of, self._identity)
        for name in _IDENTITY_MOMENTS:
            self._at_moment(name, image.pa_of, self._identity)
        self._at_function(
            "sme_encrypt_execute", image.pa_of, self._at_encrypt_execute, self._identity
        )
        for address, source in self._code.cr3_loads(_IDENTITY_LOADERS).items():
            self._identity.at(image.pa_of(address), partial(self._at_cr3_load, source))
        self._at_function("x86_64_start_kernel", image.va_of, self._start_kernel, self._probes)
        self._arm_end(image.pa_of, self._identity)

    def _go_virtual(self, kernel: Kernel) -> None:
        """Set what sees the code that runs at virtual addresses."""
        if self._virtual:
            return
        self._virtual = True
        assert self._record.image is not None
        va_of = self._record.image.va_of
        freed = initmem_freed(kernel)
        self._watch(va_of, self._probes)
        for name in () if freed else _MOMENTS:
            self._at_moment(name, va_of, self._probes)
        # The real worker where there is one; before 4.20 early_make_pgtable did it all.
        worker = find(self._symbols, "__early_make_pgtable") or find(
            self._symbols, "early_make_pgtable"
        )
        if worker is None:
            self._record.notes.append("no early_make_pgtable: early page faults cannot be seen")
        elif not freed:
            self._probes.at(va_of(worker[1]), self._at_early_make_pgtable)
        if not freed:
            self._at_function(
                "early_fixup_exception", va_of, self._at_early_exception, self._probes
            )
        loads = self._code.cr3_loads(_LOADERS)
        for address, source in loads.items():
            if not (freed and self._code.in_init_text(address)):
                self._probes.at(va_of(address), partial(self._at_cr3_load, source))
        if not loads:
            self._record.notes.append("no function that loads CR3 was found: loads cannot be seen")
        self._arm_end(va_of, self._probes)

    def _arm_end(self, at: Callable[[int], int], keep: Probes) -> None:
        """Last, so that a moment at the same place is recorded before."""
        for distance in self._until:
            assert self._record.image is not None
            keep.at(at(self._record.image.text + distance), self._at_until)

    def _at_function(
        self,
        name: str,
        at: Callable[[int], int],
        on_hit: Callable[[], None],
        keep: Probes,
    ) -> None:
        found = find(self._symbols, name)
        if found is not None:
            keep.at(at(found[1]), on_hit)

    def _watch(self, at: Callable[[int], int], keep: Probes) -> None:
        for name in self._record.values:
            found = find(self._symbols, name)
            assert found is not None
            size = min(self._symbols.size(found[0]) or 8, 8)
            try:
                self._watches[name] = keep.watch(at(found[1]), size, partial(self._at_write, name))
            except (TargetError, gdb.error) as error:
                if name not in self._record.unwatched:
                    self._record.unwatched.add(name)
                    self._record.notes.append(
                        f"writes to {name} are seen at the next event only ({one_line(error)})"
                    )

    # -- what happened ---------------------------------------------------------------------------

    def _at_write(self, name: str) -> None:
        self._record.compare(self._record.kernel(), None, name, noticed=False)

    def _at_moment(self, name: str, at: Callable[[int], int], keep: Probes) -> None:
        found = find(self._symbols, name)
        if found is None:
            return

        def on_hit() -> None:
            kernel = self._record.kernel()
            if name != _REPEATED:
                keep.drop(probe)  # it comes once, and from here on it would only cost
            if name == "sme_early_init":
                self._watch_protection_map(kernel)
                self._at_return(kernel, self._sme_early_init_returns)
            detail = panic_text(kernel) if name == "panic" else ""
            place = self._record.place(kernel)
            self._record.add(kernel, Moment(0, place, name, detail))

        probe = keep.at(at(found[1]), on_hit)

    def _start_kernel(self) -> None:
        kernel = self._record.kernel()
        self._go_virtual(kernel)
        # The identity addresses are other memory from now on.
        self._identity.retire()
        startup = find(self._symbols, "startup_64")
        if startup is not None and self._record.image is not None:
            self._probes.at(self._record.image.pa_of(startup[1]), self._at_reset)
        place = self._record.place(kernel)
        self._record.add(kernel, Moment(0, place, "x86_64_start_kernel"))

    def _at_return(self, kernel: Kernel, on_return: Callable[[], None]) -> None:
        """Call ``on_return`` once, where the function that was just entered returns to."""
        self._probes.once_at(int.from_bytes(self._stack_top(kernel), "little"), on_return)

    def _stack_top(self, kernel: Kernel) -> bytes:
        """The 8 bytes at RSP, at an identity or a virtual address."""
        rsp = register("rsp")
        return self._memory.read(rsp, 8) if not rsp >> 63 else kernel.read_virtual(rsp, 8)

    def _watch_protection_map(self, kernel: Kernel) -> None:
        """From sme_early_init's entry on: see the first entry get the mask."""
        found, before = find(self._symbols, "protection_map"), protection_map(kernel)
        if found is None or not before or self._record.image is None:
            return

        def on_write() -> None:
            later = self._record.kernel()
            after = protection_map(later)[0]
            place = self._record.place(later)
            if after & place.mask and not before[0] & place.mask:
                self._probes.drop(watch)
                detail = f"entry 0: {before[0]:#x} -> {after:#x}"
                self._record.add(
                    later, Moment(0, place, "protection_map receives the mask", detail)
                )

        try:
            watch = self._probes.watch(self._record.image.va_of(found[1]), ENTRY_SIZE, on_write)
        except TargetError:
            return  # what it holds is looked at when sme_early_init returns
        self._protection_watch = watch

    def _sme_early_init_returns(self) -> None:
        kernel = self._record.kernel()
        place = self._record.place(kernel)
        if self._protection_watch is not None:
            self._probes.drop(self._protection_watch)
        held = protection_map(kernel)
        detail = ""
        if held and place.mask:
            without = sum(not entry & place.mask for entry in held)
            count = f"{without or len(held)} of {len(held)}"
            detail = f"protection_map: {count} entries {'without' if without else 'with'} the mask"
        self._record.add(kernel, Moment(0, place, "sme_early_init returns", detail))

    def _at_encrypt_execute(self) -> None:
        """The copy of __enc_copy behind the kernel loads CR3: find where, and probe it there.

        Once each: what follows is the copying loop, on the same page, and QEMU runs a page with a
        breakpoint instruction by instruction.
        """
        found = find(self._symbols, "__enc_copy")
        if found is None:
            return
        self._record.copy = Range(
            register("rcx") + _ENC_COPY_OFFSET, register("rcx") + _WORKAREA_COPY_END
        )
        for address, source in cr3_loads(found[1]).items():
            self._identity.once_at(
                self._record.copy.start + address - found[1], partial(self._at_cr3_load, source)
            )
        # It copies the kernel onto itself byte by byte: a stop for each byte that is watched. From
        # here to the watchpoints at virtual addresses nothing writes the variables; if something
        # did, it would be noticed at the next event.
        self._identity.drop_watches()
        self._record.memory_changed()

    def _at_cr3_load(self, source: str) -> None:
        kernel = self._record.kernel()
        value = register(source)
        place = self._record.place(kernel)
        cpu = kernel.cpus[0]
        table = tables.identify(kernel, kernel.table_enc.address(value) & ~place.mask, cpu)
        kind = table.kind if table else None
        if kind is Kind.EARLY and self._before:
            if self.complete:
                for fix_up in fix_ups(kernel, self._before, place):
                    self._record.add(kernel, fix_up)
            self._before = {}
        name = table.name if table else None
        self._record.add(kernel, Cr3Load(0, place, value, name, kind))
        if kind is Kind.EARLY:
            self._go_virtual(kernel)
        elif kind is Kind.INIT and not self._init_took_over:
            self._init_took_over = True
            assert name is not None
            self._record.add(kernel, Moment(0, place, f"{name} takes over"))

    def _at_early_make_pgtable(self) -> None:
        kernel = self._record.kernel()
        address = register("rdi")
        caller = self._record.function(int.from_bytes(self._stack_top(kernel), "little"))
        flags = kernel.read_symbol("early_pmd_flags") or 0
        place = self._record.place(kernel)

        def on_return() -> None:
            self._mapped(place, address, caller.partition("+")[0], flags)

        self._at_return(kernel, on_return)

    def _mapped(self, place: Place, address: int, caller: str, flags: int) -> None:
        kernel = self._record.kernel()
        root = kernel.pa_of("early_top_pgt")
        entries: tuple[tuple[str, int], ...] = ()
        mapped = False
        if root is not None:
            try:
                walk = kernel.walk(address, root, kernel.cpus[0])
                entries = tuple((s.entry.level.name, s.entry.raw) for s in walk.steps)
                mapped = walk.mapping is not None
            except SmeError:
                pass  # not canonical: nothing can be mapped there, and it was refused
        bootdata = caller.startswith(("sme_", "__sme_"))
        self._record.add(
            kernel,
            EarlyMapping(
                0,
                place,
                address=address,
                entries=entries,
                flags=flags,
                mask=place.mask,
                caller=caller,
                refused=not mapped and not bootdata,
                physical=(address - page_offset_base(kernel, kernel.cpus[0])) & U64,
            ),
        )

    def _at_early_exception(self) -> None:
        """early_fixup_exception(regs, trapnr): an exception that is no page fault to be served."""
        kernel = self._record.kernel()
        vector = register("rsi") & 0xFFFFFFFF
        raw = kernel.read_virtual(register("rdi"), len(_PT_REGS) * 8)
        values = {
            name: int.from_bytes(raw[at * 8 : at * 8 + 8], "little")
            for at, name in enumerate(_PT_REGS)
        }
        place = self._record.place(kernel)
        base = page_offset_base(kernel, kernel.cpus[0])
        top = max(known.end for known in self._memory.ram)
        suspects = [
            (name, value, (value - base) & U64)
            for name, value in values.items()
            if vector in _NO_ADDRESS and through_va(value, base, place.mask, top)
        ]
        name, value, physical = suspects[0] if suspects else ("", None, None)
        where = self._record.function(values["ip"])
        self._record.add(kernel, EarlyException(0, place, vector, where, name, value, physical))

    def _at_until(self) -> None:
        self._record.look()
        where = self._record.function(register("rip"))
        self.end(f"ended at {where}; all breakpoints are removed")

    def _at_reset(self) -> None:
        self.end("ended: the guest was reset; all breakpoints are removed")

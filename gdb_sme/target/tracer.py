# SPDX-License-Identifier: GPL-2.0-or-later
"""Records the timeline of an early boot with invisible breakpoints and watchpoints.

Everything is set from the kernel's entry on, never before: the decompressor writes the same
addresses while it unpacks. Variables are watched at their identity address until the kernel runs at
its virtual addresses, and there from then on; QEMU watches virtual addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gdb

from gdb_sme.core.address import U64
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, LEVEL5, TABLE_SIZE
from gdb_sme.core.ports import Range
from gdb_sme.errors import SmeError, TargetError
from gdb_sme.linux import tables
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import Stage, boot_stage, page_offset_base
from gdb_sme.linux.symbols import find
from gdb_sme.linux.tables import Kind
from gdb_sme.linux.trace import (
    WATCHED,
    Cr3Load,
    EarlyMapping,
    Event,
    FixUp,
    Moment,
    Place,
    Timeline,
    Write,
)
from gdb_sme.target.code import cr3_loads
from gdb_sme.target.entry import EntryFinder
from gdb_sme.target.probe import Probe, Silent, register
from gdb_sme.target.qemu import QemuPhysMemory
from gdb_sme.target.registers import current_cpu
from gdb_sme.target.symbols import GdbSymbols
from gdb_sme.target.watch import Watch

#: Functions whose entry is a moment of the timeline.
_MOMENTS = (
    "sme_enable",
    "__startup_64",
    "sme_encrypt_kernel",
    "x86_64_start_kernel",
    "reset_early_page_tables",
    "sme_early_init",
    "idt_setup_early_handler",
    "start_kernel",
    "init_mem_mapping",
    "mem_encrypt_init",
    "panic",
)
#: Functions that load CR3 in early boot; a kernel has those it has.
_LOADERS = (
    "startup_64",
    "secondary_startup_64",
    "secondary_startup_64_no_verify",
    "common_startup_64",
    "x86_64_start_kernel",
    "reset_early_page_tables",
    "init_mem_mapping",
    "load_cr3",
    "native_write_cr3",
    "write_cr3",
    "kasan_init",
    "sev_verify_cbit",
)
#: Early tables whose entries the kernel fixes up before it loads them, and how many pages of each.
_FIXED_UP = {
    "early_top_pgt": 1,
    "level4_kernel_pgt": 1,
    "level3_kernel_pgt": 1,
    "level2_kernel_pgt": 1,
    "level2_fixmap_pgt": 1,
    "early_dynamic_pgts": 3,
}
#: The loader of CR3 inside sme_encrypt_execute runs in a copy, this far behind sme_workarea (its
#: argument in RCX): arch/x86/mm/mem_encrypt_boot.S (6.1 and 6.12).
_ENC_COPY_OFFSET, _WORKAREA_COPY_END = 0x1000, 0x2000

#: Where the trace ends by itself: the boot CPU's early boot is over.
DEFAULT_UNTIL = "rest_init"


class Tracer:
    """One trace, from the kernel's entry to its end.

    Args:
        memory: guest physical memory.
        symbols: the kernel's symbols.
        kernel: the kernel at this stop.
        until: symbol at which the trace ends; None for `DEFAULT_UNTIL`, where the kernel has it.
        report: called with each event as it happens.

    Raises:
        TargetError: ``until`` is no symbol of the kernel.
        SymbolError: there are no symbols to trace with.
    """

    def __init__(
        self,
        memory: QemuPhysMemory,
        symbols: GdbSymbols,
        kernel: Kernel,
        until: str | None,
        report: Callable[[Event], None],
    ) -> None:
        self._memory = memory
        self._symbols = symbols
        self._report = report
        self._events: list[Event] = []
        self._notes: list[str] = []
        self._probes: list[Silent] = []
        self._identity: list[Silent] = []
        self._values: dict[str, int] = {}
        self._before: dict[str, bytes] = {}
        self._image: KernelImage | None = None
        self._copy = Range(0, 0)
        self._until = self._end_of(until)
        self._finder: EntryFinder | None = None
        self.complete = True
        self.state = "armed: waiting for the kernel's entry"
        stage = boot_stage(kernel)
        if stage.stage >= Stage.IDENTITY and kernel.image is not None:
            self.complete = False
            self._notes.append(f"started late, at stage {stage}: what came before cannot be seen")
            self._at_entry(kernel.image)
        else:
            self._finder = EntryFinder(memory, symbols, self._at_entry)

    @property
    def timeline(self) -> Timeline:
        """What was recorded so far."""
        return Timeline(tuple(self._events), self.complete, self.state, tuple(self._notes))

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
        for probe in (*self._probes, *self._identity):
            probe.retire()
        self._probes.clear()
        self._identity.clear()
        self.state = why

    # -- arming ----------------------------------------------------------------------------------

    def _end_of(self, until: str | None) -> int | None:
        found = find(self._symbols, until or DEFAULT_UNTIL)
        if found is None and until is not None:
            raise TargetError(f"--until {until}: no such symbol in the symbol file")
        return found[1] if found else None

    def _at_entry(self, image: KernelImage) -> None:
        if self._image is not None:
            self.end("ended: the guest was reset")
            return
        self._finder = None
        self._image = image
        self.state = "recording"
        kernel = self._kernel()
        self._read_tables(kernel)
        for name in WATCHED:
            self._watch(kernel, name)
        for name in _MOMENTS:
            self._at_function(name, self._moment_of(name))
        self._at_function("sme_encrypt_execute", self._at_encrypt_execute)
        # The real worker where there is one; before 4.20 early_make_pgtable did it all.
        worker = find(self._symbols, "__early_make_pgtable") or find(
            self._symbols, "early_make_pgtable"
        )
        if worker is not None:
            self._at(worker[1], self._at_early_make_pgtable)
        else:
            self._notes.append("no early_make_pgtable: early page faults cannot be seen")
        loads = self._cr3_loads()
        for address, source in loads.items():
            self._at(address, partial(self._at_cr3_load, source))
        if not loads:
            self._notes.append("no function that loads CR3 was found: loads cannot be seen")
        if self._until is not None:
            self._at(self._until, self._at_until)

    def _at(self, address: int, on_hit: Callable[[], None]) -> None:
        """Probe the debugger's ``address`` at its identity and at its virtual address."""
        assert self._image is not None
        self._probes.append(Probe(self._image.va_of(address), on_hit))
        self._identity.append(Probe(self._image.pa_of(address), on_hit))

    def _at_function(self, name: str, on_hit: Callable[[], None]) -> None:
        found = find(self._symbols, name)
        if found is not None:
            self._at(found[1], on_hit)

    def _cr3_loads(self) -> dict[int, str]:
        """Address and source register of every instruction of `_LOADERS` that loads CR3."""
        loads: dict[int, str] = {}
        for name in _LOADERS:
            found = find(self._symbols, name)
            if found is not None:
                loads |= cr3_loads(found[1])
        return loads

    def _watch(self, kernel: Kernel, name: str) -> None:
        found, value = find(self._symbols, name), kernel.read_symbol(name)
        if found is None or value is None:
            self._notes.append(f"no {name} in this kernel")
            return
        assert self._image is not None
        self._values[name] = value
        size = self._symbols.size(found[0]) or 8
        places = [(self._image.va_of(found[1]), self._probes)]
        if boot_stage(kernel).stage <= Stage.IDENTITY:
            places.append((self._image.pa_of(found[1]), self._identity))
        for address, keep in places:
            try:
                keep.append(Watch(address, min(size, 8), partial(self._at_write, name)))
            except (TargetError, gdb.error) as error:
                self._notes.append(f"writes to {name} at {address:#x} cannot be seen: {error}")

    # -- what happened ---------------------------------------------------------------------------

    def _kernel(self) -> Kernel:
        assert self._image is not None
        return Kernel(self._memory, self._symbols, (current_cpu(),), hints=(self._image,))

    def _place(self, kernel: Kernel) -> Place:
        cpu = kernel.cpus[0]
        cr3 = kernel.cr3(cpu)
        table = tables.identify(kernel, cr3.pa, cpu) if cr3 is not None else None
        function, source = self._where(cpu.rip)
        return Place(
            pc=cpu.rip,
            function=function,
            source=source,
            cpu=cpu.index,
            cr3=cpu.cr3 or 0,
            table=table.name if table else None,
            stage=str(boot_stage(kernel)),
            mask=kernel.read_symbol("sme_me_mask") or 0,
        )

    def _where(self, pc: int) -> tuple[str, str | None]:
        """The function and source line of a run-time address, identity or virtual."""
        assert self._image is not None
        if pc in self._copy:
            return f"__enc_copy+{pc - self._copy.start} (copied)", None
        address = self._image.symbol_va(pc)
        if address is None:
            address = (pc - self._image.koff) & U64
        nearest = self._symbols.nearest(address)
        if nearest is None:
            return f"{pc:#x}", None
        line = gdb.find_pc_line(address)
        source = f"{line.symtab.filename}:{line.line}" if line.symtab is not None else None
        return f"{nearest[0]}+{nearest[1]}" if nearest[1] else nearest[0], source

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._report(event)

    @property
    def _next(self) -> int:
        return len(self._events) + 1

    def _at_write(self, name: str) -> None:
        kernel = self._kernel()
        new = kernel.read_symbol(name)
        if new is None or new == self._values[name]:
            return
        old, self._values[name] = self._values[name], new
        self._add(Write(self._next, self._place(kernel), name, old, new))

    def _moment_of(self, name: str) -> Callable[[], None]:
        def on_hit() -> None:
            kernel = self._kernel()
            if name == "x86_64_start_kernel":
                self._leave_identity()
            if name == "sme_early_init":
                self._at_return(kernel, self._sme_early_init_returns)
            detail = self._text_at(kernel, register("rdi")) if name == "panic" else ""
            self._add(Moment(self._next, self._place(kernel), name, detail))

        return on_hit

    def _text_at(self, kernel: Kernel, va: int) -> str:
        try:
            raw = kernel.read_virtual(va, 80)
        except SmeError:
            return ""
        return raw.partition(b"\0")[0].decode("ascii", "replace").strip()

    def _leave_identity(self) -> None:
        """The kernel runs at its virtual addresses: the identity ones are other memory now."""
        for probe in self._identity:
            probe.retire()
        self._identity.clear()

    def _at_return(self, kernel: Kernel, on_return: Callable[[], None]) -> None:
        """Call ``on_return`` once, where the function that was just entered returns to."""
        address = int.from_bytes(self._stack_top(kernel), "little")
        probes: list[Probe] = []

        def once() -> None:
            probes[0].retire()
            on_return()

        probes.append(Probe(address, once))
        self._probes.append(probes[0])

    def _stack_top(self, kernel: Kernel) -> bytes:
        """The 8 bytes at RSP, at an identity or a virtual address."""
        rsp = register("rsp")
        return self._memory.read(rsp, 8) if not rsp >> 63 else kernel.read_virtual(rsp, 8)

    def _sme_early_init_returns(self) -> None:
        kernel = self._kernel()
        place = self._place(kernel)
        detail = ""
        pa = kernel.pa_of("protection_map")
        if pa is not None and place.mask:
            found = self._symbols.address("protection_map")
            size = (self._symbols.size("protection_map") or 128) if found else 128
            raw = self._memory.read(pa, size)
            with_mask = sum(
                bool(int.from_bytes(raw[at : at + 8], "little") & place.mask)
                for at in range(0, size, 8)
            )
            count = size // 8
            detail = f"protection_map: {with_mask} of {count} entries with the mask"
            if with_mask < count:
                detail = f"protection_map: {count - with_mask} of {count} entries without the mask"
        self._add(Moment(self._next, place, "sme_early_init returns", detail))

    def _at_encrypt_execute(self) -> None:
        """The copy of __enc_copy behind the kernel loads CR3: find where, and probe it there."""
        found = find(self._symbols, "__enc_copy")
        if found is None:
            return
        self._copy = Range(register("rcx") + _ENC_COPY_OFFSET, register("rcx") + _WORKAREA_COPY_END)
        known = {probe.location for probe in self._identity}
        for address, source in cr3_loads(found[1]).items():
            at = self._copy.start + address - found[1]
            if f"*{at:#x}" not in known:
                self._identity.append(Probe(at, partial(self._at_cr3_load, source)))

    def _at_cr3_load(self, source: str) -> None:
        kernel = self._kernel()
        value = register(source)
        place = self._place(kernel)
        cpu = kernel.cpus[0]
        table = tables.identify(kernel, kernel.table_enc.address(value) & ~place.mask, cpu)
        kind = table.kind if table else None
        if kind is Kind.EARLY and self._before:
            self._compare_tables(kernel, place)
        self._add(Cr3Load(self._next, place, value, table.name if table else None, kind))

    def _at_early_make_pgtable(self) -> None:
        kernel = self._kernel()
        address = register("rdi")
        caller = self._where(int.from_bytes(self._stack_top(kernel), "little"))[0]
        flags = kernel.read_symbol("early_pmd_flags") or 0
        place = self._place(kernel)

        def on_return() -> None:
            self._mapped(place, address, caller.partition("+")[0], flags)

        self._at_return(kernel, on_return)

    def _mapped(self, place: Place, address: int, caller: str, flags: int) -> None:
        kernel = self._kernel()
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
        self._add(
            EarlyMapping(
                self._next,
                place,
                address=address,
                entries=entries,
                flags=flags,
                mask=place.mask,
                caller=caller,
                refused=not mapped and not bootdata,
                physical=(address - page_offset_base(kernel, kernel.cpus[0])) & U64,
            )
        )

    # -- the fix-ups -----------------------------------------------------------------------------

    def _read_tables(self, kernel: Kernel) -> None:
        five_level = kernel.cpus[0].mode is LEVEL5
        for name, pages in _FIXED_UP.items():
            pa = kernel.pa_of(name)
            if pa is not None and (five_level or name != "level4_kernel_pgt"):
                self._before[name] = self._memory.read(pa, pages * TABLE_SIZE)

    def _compare_tables(self, kernel: Kernel, place: Place) -> None:
        before, self._before = self._before, {}
        if not self.complete:
            return
        for name, old in before.items():
            found, pa = kernel.symbol(name), kernel.pa_of(name)
            if pa is None or found is None:
                continue
            new = self._memory.read(pa, len(old))
            for page in range(len(old) // TABLE_SIZE):
                entries = _entries(old, new, page)
                if not entries:
                    continue
                title = f"{found[0]}[{page}]" if len(old) > TABLE_SIZE else found[0]
                exempt = self._decrypted(kernel) if name == "level2_kernel_pgt" else ()
                self._add(FixUp(self._next, place, title, entries, exempt))

    def _decrypted(self, kernel: Kernel) -> tuple[int, ...]:
        """Indexes of .bss..decrypted's entries in level2_kernel_pgt."""
        start = find(self._symbols, "__start_bss_decrypted")
        end = find(self._symbols, "__end_bss_decrypted")
        if start is None or end is None or kernel.image is None:
            return ()
        first, last = kernel.image.va_of(start[1]), kernel.image.va_of(end[1])
        return tuple(range(first >> 21 & 511, (last - 1 >> 21 & 511) + 1)) if last > first else ()

    def _at_until(self) -> None:
        where = self._where(register("rip"))[0]
        self.end(f"ended at {where}; all breakpoints are removed")


def _entries(old: bytes, new: bytes, page: int) -> tuple[tuple[int, int, int], ...]:
    """Index, old and new value of each entry that is present or changed."""
    found = []
    for index in range(ENTRIES):
        at = page * TABLE_SIZE + index * ENTRY_SIZE
        before = int.from_bytes(old[at : at + ENTRY_SIZE], "little")
        after = int.from_bytes(new[at : at + ENTRY_SIZE], "little")
        if before != after or after & 1:
            found.append((index, before, after))
    return tuple(found)

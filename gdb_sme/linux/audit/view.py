# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules look at: one scan of the live tables, shared, and what the kernel knows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import Range
from gdb_sme.core.ranges import MappedRange
from gdb_sme.core.scan import Scan, TableUse, scan
from gdb_sme.errors import TargetError
from gdb_sme.linux import e820, exceptions, tables
from gdb_sme.linux.audit.model import Place
from gdb_sme.linux.cr3check import missing_image
from gdb_sme.linux.exceptions import Exempt
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.layout import Region, regions
from gdb_sme.linux.stage import Stage, boot_stage, page_offset_base, system_state_at_least
from gdb_sme.linux.tables import Kind
from gdb_sme.linux.translate import Root, root_of_cpu, root_of_symbol

#: Places of one rule for which the entry is looked up.
_WALKED = 64


class View:
    """The address space of a kernel at one stop.

    Args:
        kernel: the kernel.
        cpu: the CPU whose root is audited; of the others' roots, what is their own.
        progress: called with a virtual address for every table that is read.

    Raises:
        TargetError: the kernel is not on tables of its own yet.
    """

    def __init__(
        self, kernel: Kernel, cpu: CpuState, progress: Callable[[int], None] | None = None
    ) -> None:
        self.kernel = kernel
        self.cpu = cpu
        self._progress = progress
        self.root = audited_root(kernel, cpu)

    # -- what is mapped --------------------------------------------------------------------------

    def _scan(self, root_pa: int, end: int = 1 << 64) -> Scan:
        kernel, cpu = self.kernel, self.cpu
        return scan(
            kernel.memory, root_pa, cpu.mode, kernel.table_enc, end=end,
            physical_bits=kernel.physical_bits, nx_enabled=cpu.nx_enabled, progress=self._progress,
        )  # fmt: skip

    @cached_property
    def scan(self) -> Scan:
        """All that the root maps."""
        return self._scan(self.root.pa)

    @cached_property
    def other_roots(self) -> tuple[Root, ...]:
        """The roots of the other CPUs, and init_top_pgt, that are not the one audited.

        Nor that of efi_mm, which maps the firmware and has a rule of its own.
        """
        found: dict[int, Root] = {}
        for cpu in self.kernel.cpus:
            known = cpu.cr3 is not None or tables.kernels_table(self.kernel, cpu) is not None
            if known and cpu.paging and cpu.long_mode:
                root = root_of_cpu(self.kernel, cpu)
                if root.table is not None:
                    found[root.pa] = root
        if self.stage >= Stage.INIT:
            init = root_of_symbol(self.kernel, "init_top_pgt")
            if init is not None:
                found.setdefault(init.pa, init)
        found.pop(self.root.pa, None)
        efi = tables.efi_table(self.kernel)
        if efi is not None:
            found.pop(efi.pa, None)
        return tuple(found.values())

    @cached_property
    def other_scans(self) -> tuple[tuple[Root, Scan], ...]:
        """What the other roots map in the lower half, which is their own."""
        end = 1 << (self.cpu.mode.va_bits - 1)
        return tuple((root, self._scan(root.pa, end)) for root in self.other_roots)

    @cached_property
    def ranges(self) -> tuple[MappedRange, ...]:
        """Every range of every root, the shared upper half once."""
        return self.scan.ranges + tuple(r for _, each in self.other_scans for r in each.ranges)

    @cached_property
    def table_uses(self) -> tuple[TableUse, ...]:
        """Every use of a table page by any root, the shared upper half once."""
        return self.scan.tables + tuple(t for _, each in self.other_scans for t in each.tables)

    @cached_property
    def unencrypted(self) -> tuple[MappedRange, ...]:
        """The ranges that are mapped without encryption."""
        return tuple(r for r in self.ranges if not r.attributes.encrypted)

    @cached_property
    def _starts(self) -> list[int]:
        return [each.va for each in self.scan.ranges]

    def within(self, start: int, end: int) -> Iterator[MappedRange]:
        """What the root maps from virtual ``start`` to ``end``, cut off there."""
        ranges = self.scan.ranges
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(ranges) and ranges[index].va < end:
            if ranges[index].end > start:
                yield cut(ranges[index], start, end)
            index += 1

    # -- what the kernel knows -------------------------------------------------------------------

    @cached_property
    def stage(self) -> Stage:
        """The boot stage."""
        return boot_stage(self.kernel).stage

    def reached(self, state: str) -> bool:
        """Whether ``system_state`` has come to the enumerator ``state``."""
        return system_state_at_least(self.kernel, state)

    @cached_property
    def guest(self) -> bool:
        """Whether the kernel is an encrypted guest (SEV), not a host that encrypts (SME)."""
        return self.kernel.encryption.guest

    @cached_property
    def regions(self) -> dict[str, Region]:
        """The kernel's memory layout by name."""
        return {each.name: each for each in regions(self.kernel, self.cpu)}

    @cached_property
    def page_offset(self) -> int:
        """Start of the direct map."""
        return page_offset_base(self.kernel, self.cpu)

    @cached_property
    def direct_map(self) -> Region:
        """The direct map."""
        return self.regions["direct map"]

    @cached_property
    def ram(self) -> tuple[Range, ...]:
        """Physical memory that the kernel uses as RAM, lowest first."""
        return e820.ram(self.kernel)

    def is_ram(self, pa: int) -> bool:
        """Whether ``pa`` is memory that the kernel uses as RAM."""
        return any(pa in each for each in self.ram)

    @cached_property
    def firmware(self) -> tuple[Range, ...]:
        """Physical memory that the firmware kept: reserved, ACPI tables, NVS; lowest first."""
        return e820.firmware(self.kernel)

    def is_ram_or_firmware(self, pa: int) -> bool:
        """Whether ``pa`` is memory at all, not a device."""
        return self.is_ram(pa) or any(pa in each for each in self.firmware)

    @cached_property
    def typed(self) -> bool:
        """Whether the symbols have types; without them the kernel's lists cannot be read."""
        return self.kernel.symbols.field("list_head", "next") is not None

    @cached_property
    def exempt(self) -> tuple[Exempt, ...]:
        """All that is unencrypted by design."""
        return tuple(exceptions.unencrypted(self.kernel))

    # -- places ----------------------------------------------------------------------------------

    def unexplained(self, ranges: Iterable[MappedRange]) -> Iterator[MappedRange]:
        """The parts of ``ranges`` that no exception explains."""
        for each in ranges:
            yield from uncovered(each, self.exempt)

    def places(
        self, ranges: Iterable[MappedRange], detail: str, root: int | None = None
    ) -> Iterator[Place]:
        """``ranges`` as places, with the leaf entry of their first page.

        ``root`` is the physical address of the top table that maps them, None for one of `ranges`.
        """
        for number, each in enumerate(ranges):
            yield self.place(each, detail, root, walked=number < _WALKED)

    def place(
        self, found: MappedRange, detail: str, root: int | None = None, *, walked: bool = True
    ) -> Place:
        """A range as a place; ``root`` as for `places`."""
        page_size = found.attributes.page_size
        top = self._root_of(found) if root is None else root
        steps = self.kernel.walk(found.va, top, self.cpu).steps if walked else ()
        entry = steps[-1] if steps else None
        return Place(
            found.va, found.pa, found.size, detail, page_size,
            entry.entry.level.name if entry else "",
            entry.entry_pa if entry else None,
            entry.entry.raw if entry else None,
        )  # fmt: skip

    def _root_of(self, found: MappedRange) -> int:
        """The root that maps ``found``, a range of `ranges` or a part of one."""
        for root, each in self.other_scans:
            if any(r.va <= found.va < r.end and r.pa_of(found.va) == found.pa for r in each.ranges):
                return root.pa
        return self.root.pa


def audited_root(kernel: Kernel, cpu: CpuState) -> Root:
    """The root of ``cpu`` (`root_of_cpu`); init_top_pgt where that is no table that is known.

    And where it is that of efi_mm, on which the CPU is for as long as it runs the firmware:
    efi_enter_mm() in arch/x86/platform/efi/efi_64.c (6.1 and 6.12).

    With no symbols at all no table is known, and the one in CR3 is taken as it is.

    Raises:
        TargetError: the kernel is not on tables of its own yet, or there is none to be had.
    """
    cr3 = kernel.cr3(cpu)
    if cr3 is None and tables.kernels_table(kernel, cpu) is not None:
        return root_of_cpu(kernel, cpu)
    if cr3 is not None:
        root = root_of_cpu(kernel, cpu)
        table = tables.identify(kernel, cr3.pa, cpu)
        if table is not None:
            if table.kind in (Kind.IDENTITY, Kind.WORKAREA, Kind.TRAMPOLINE):
                raise TargetError(
                    f"CPU {cpu.index} is not on the kernel's own tables but on {table.name}; "
                    "continue to x86_64_start_kernel or later"
                )
            if table.kind is not Kind.EFI:
                return root
        elif kernel.symbols.address("_text") is None:
            return root
    init = root_of_symbol(kernel, "init_top_pgt")
    if init is None and kernel.image is None:
        raise TargetError(f"no table to audit: {missing_image(kernel)}")
    if init is None:
        raise TargetError("no table to audit: CR3 holds no known one and init_top_pgt is missing")
    return init


def cut(found: MappedRange, start: int, end: int) -> MappedRange:
    """The part of ``found`` from virtual ``start`` to ``end``, which it overlaps."""
    first, last = max(found.va, start), min(found.end, end)
    if first == found.va and last == found.end:
        return found
    return MappedRange(first, last - first, found.pa_of(first), found.attributes)


def uncovered(found: MappedRange, exempt: Iterable[Exempt]) -> tuple[MappedRange, ...]:
    """The parts of ``found`` that none of ``exempt`` covers, by virtual address."""
    parts = [(found.va, found.end)]
    for each in exempt:
        hole = _overlap(found, each)
        if hole is not None:
            parts = [left for part in parts for left in _without(part, hole)]
    return tuple(cut(found, *part) for part in parts)


def _overlap(found: MappedRange, exempt: Exempt) -> tuple[int, int] | None:
    """The virtual addresses of ``found`` that ``exempt`` covers, None when there are none."""
    if found.repeated:
        start, end = (found.va, found.end) if found.pa in exempt.physical else (0, 0)
    else:
        start = found.va + max(0, exempt.physical.start - found.pa)
        end = found.va + min(found.size, exempt.physical.end - found.pa)
    if exempt.virtual is not None:
        start, end = max(start, exempt.virtual.start), min(end, exempt.virtual.end)
    return (start, end) if start < end else None


def _without(part: tuple[int, int], hole: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for start, end in ((part[0], min(part[1], hole[0])), (max(part[0], hole[1]), part[1])):
        if start < end:
            yield start, end

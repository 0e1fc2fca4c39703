# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the patch: is CR3 == __sme_pa(early_level4_pgt), or what it should be instead?

Linux's own comparison in ``__early_make_pgtable`` takes the mask off both sides since 4.14 (6.1
arch/x86/kernel/head64.c), so a CR3 that lost its C-bit passes there. Here address and C-bit are
judged apart, against the unmasked register.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gdb_sme.core.cr3 import CpuState, Cr3
from gdb_sme.errors import SymbolError, TargetError
from gdb_sme.linux import tables
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import Stage, boot_stage, direct_map_taken_over
from gdb_sme.linux.symbols import canonical
from gdb_sme.linux.tables import Kind, Table

#: Tables that are in CR3 before the switch to the kernel's own.
_NOT_THE_KERNELS = (Kind.IDENTITY, Kind.WORKAREA)


class Verdict(Enum):
    """Outcome of one part of the check."""

    OK = "ok"
    FAIL = "FAIL"
    BY_DESIGN = "by design"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the check.

    Attributes:
        verdict: its outcome.
        expected: the value it should have (an address, or the mask's bit), None when any would do.
        actual: the value it has.
        reason: why, in words.
    """

    verdict: Verdict
    expected: int | None
    actual: int
    reason: str


@dataclass(frozen=True, slots=True)
class CpuCheck:
    """The check of one CPU.

    Attributes:
        cpu: the CPU's number.
        cr3: the register, None while paging is off.
        table: the table that the address is, None when it is none that is known.
        expected: the table that it should be, None when any known one would do.
        address, c_bit: the two parts, None while paging is off.
        skipped: why there is nothing to check, empty otherwise.
    """

    cpu: int
    cr3: Cr3 | None
    table: Table | None
    expected: Table | None
    address: Part | None
    c_bit: Part | None
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether no part fails."""
        parts = (self.address, self.c_bit)
        return all(part is None or part.verdict is not Verdict.FAIL for part in parts)

    @property
    def conclusion(self) -> str:
        """The check in one line."""
        if self.skipped:
            return self.skipped
        assert self.cr3 is not None
        if self.passed and self.table is not None and self.table.kind in _NOT_THE_KERNELS:
            return f"CR3 is not one of the kernel's tables yet: {_place(self.table)}"
        name = self.table.name if self.table else f"{self.cr3.pa:#x}"
        masked = self.c_bit is not None and bool(self.c_bit.expected)
        plain = "__pa" if self.c_bit is None or not masked else "__sme_pa"
        if self.passed:
            return f"CR3 == {plain}({name})"
        wanted = self.expected or self.table
        reasons = [p.reason for p in (self.address, self.c_bit) if p and p.verdict is Verdict.FAIL]
        target = f"__sme_pa({wanted.name})" if wanted else "any table that the kernel knows"
        return f"CR3 != {target}: {'; '.join(reasons)}"


@dataclass(frozen=True, slots=True)
class Cr3Report:
    """The check of all CPUs.

    Attributes:
        sme_me_mask: the mask that was compared with.
        stage: the boot stage, in words.
        cpus: one check a CPU.
    """

    sme_me_mask: int
    stage: str
    cpus: tuple[CpuCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every CPU passes."""
        return all(check.passed for check in self.cpus)


def check_cr3(kernel: Kernel, expect: str | None = None) -> Cr3Report:
    """Check CR3 of every CPU.

    Args:
        kernel: the kernel at this stop.
        expect: ``"early"``, ``"init"`` or a symbol of the kernel image that CPU 0's CR3 must hold,
            and that of every other CPU that has paging on; None accepts each table where the
            kernel itself would have it.

    Raises:
        SymbolError: a symbol that is needed is not to be had.
        TargetError: no CPU gives CR3, and one is expected.
    """
    if expect is not None and all(cpu.cr3 is None for cpu in kernel.cpus):
        raise TargetError(
            f"this target gives no CR3: whether it holds {expect} cannot be known; without "
            "--expect the value is shown that the kernel would have loaded"
        )
    wanted = None if expect is None else _expected_table(kernel, expect)
    if kernel.image is None and any(c.paging and _kernel_runs(c) for c in kernel.cpus):
        raise SymbolError(missing_image(kernel))
    stage = boot_stage(kernel)
    checks = tuple(_check_cpu(kernel, cpu, stage.stage, wanted) for cpu in kernel.cpus)
    return Cr3Report(kernel.enc.mask, str(stage), checks)


def _kernel_runs(cpu: CpuState) -> bool:
    """Whether ``cpu`` is past the identity addresses, so that some kernel has loaded CR3."""
    return cpu.user_mode or cpu.rip >> 63 != 0


def missing_image(kernel: Kernel) -> str:
    """Why the kernel's symbols cannot be used, and what to do."""
    if kernel.symbols.address("_text") is None:
        return "no kernel symbols; load them with: file vmlinux"
    foreign = kernel.foreign_build_id
    if foreign is not None:
        own = kernel.symbols.build_id or "none"
        return (
            f"the symbols are of another kernel (build-id {own}, the guest has "
            f"{foreign or 'none at their place'}); load the vmlinux of the running kernel with: "
            "file vmlinux"
        )
    if all(cpu.cr3 is None for cpu in kernel.cpus):
        return (
            "the running kernel is not the one of the symbols, whose build-id it has nowhere; load "
            "its vmlinux with: file vmlinux"
        )
    return "the kernel is not in memory yet; continue to startup_64 or later"


def _expected_table(kernel: Kernel, expect: str) -> Table:
    name = {"early": "early_top_pgt", "init": "init_top_pgt"}.get(expect, canonical(expect))
    if kernel.image is None:
        raise SymbolError(missing_image(kernel))
    if name == "early_top_pgt":
        table = tables.early_table(kernel)
        if table is None and kernel.symbol(name) is not None:
            raise SymbolError(
                f"{expect}: early_top_pgt was freed with the rest of .init memory after boot; "
                "nothing can be compared with it now"
            )
    else:
        found, pa = kernel.symbol(name), kernel.pa_of(name)
        table = None
        if found is not None and pa is not None:
            kind = Kind.INIT if name == "init_top_pgt" else Kind.MM
            table = Table(kind, found[0], pa)
    if table is None:
        raise SymbolError(f"no symbol {name} in the kernel's symbol file; expect another table")
    return table


def _check_cpu(kernel: Kernel, cpu: CpuState, stage: Stage, wanted: Table | None) -> CpuCheck:
    cr3 = kernel.cr3(cpu)
    if cr3 is None:
        return _without_cr3(kernel, cpu)
    if not cpu.paging:
        where = "real mode" if not cpu.protected else "protected mode"
        return CpuCheck(
            cpu.index, cr3, None, None, None, None, f"paging is off ({where}); CR3 is not in use"
        )
    table = tables.identify(kernel, cr3.pa, cpu)
    expected = wanted or _expected_here(kernel, cpu, stage)
    strict = wanted is not None or _out_of_order(kernel, cpu, table, expected)
    return CpuCheck(
        cpu.index,
        cr3,
        table,
        expected,
        _address_part(cr3, table, expected, strict),
        _c_bit_part(kernel, cr3, table or expected),
    )


def _without_cr3(kernel: Kernel, cpu: CpuState) -> CpuCheck:
    """Nothing to compare: what the kernel would have loaded, and that it is no more than that."""
    table = tables.kernels_table(kernel, cpu)
    text = "this target gives no CR3: neither its address nor its C-bit can be checked"
    if table is not None and table.detail == tables.NO_TASK:
        text += f"; nor is the value to be had that the kernel has loaded: {table.detail}"
    elif table is not None:
        raw = tables.build_cr3(kernel, cpu, table)
        more = f", {table.detail}" if table.detail else ""
        text += f"; by its variables the kernel has loaded {raw:#018x}, {table.name}{more}"
    return CpuCheck(cpu.index, None, None, table, None, None, text)


def _expected_here(kernel: Kernel, cpu: CpuState, stage: Stage) -> Table | None:
    """The table that the kernel would have loaded on ``cpu`` at this stage, None for any."""
    if not _kernel_runs(cpu) or stage < Stage.EARLY:
        return None
    # CR3 itself is what is to be judged: until user space the tables say how far the boot is.
    if stage < Stage.RUNNING and not direct_map_taken_over(kernel, cpu):
        return tables.early_table(kernel)
    return tables.loaded_table(kernel, cpu) or tables.init_table(kernel)


def _in_kasan_init(kernel: Kernel, cpu: CpuState) -> bool:
    """Whether ``cpu`` is in kasan_init, which goes back to early_top_pgt for a while.

    arch/x86/mm/kasan_init_64.c (6.1 and 6.12).
    """
    if kernel.image is None:
        return False
    nearest = kernel.symbols.nearest(cpu.rip - kernel.image.koff)
    return nearest is not None and nearest[0] == "kasan_init"


def _out_of_order(
    kernel: Kernel, cpu: CpuState, table: Table | None, expected: Table | None
) -> bool:
    """Whether ``table`` is early_top_pgt when its turn is over, or init_top_pgt before its turn."""
    if table is None or expected is None or table.kind not in (Kind.EARLY, Kind.INIT):
        return False
    wrong = (table.kind is Kind.EARLY) is not (expected.kind is Kind.EARLY)
    return wrong and not _in_kasan_init(kernel, cpu)


def _address_part(cr3: Cr3, table: Table | None, expected: Table | None, strict: bool) -> Part:
    pa = expected.pa if expected else None
    if table is not None and (expected is None or table.pa == expected.pa):
        return Part(Verdict.OK, table.pa, cr3.pa, _place(table))
    if table is not None and not strict:
        return Part(Verdict.OK, table.pa, cr3.pa, _place(table))
    if table is not None:
        assert expected is not None
        reason = f"the address is that of {table.name}, not of {expected.name} ({expected.pa:#x})"
        return Part(Verdict.FAIL, pa, cr3.pa, reason)
    if expected is None:
        return Part(Verdict.FAIL, None, cr3.pa, f"{cr3.pa:#x} is no table that the kernel knows")
    reason = f"the address {cr3.pa:#x} is no known table, expected {expected.name} ({pa:#x})"
    return Part(Verdict.FAIL, pa, cr3.pa, reason)


def _place(table: Table) -> str:
    if table.kind in (Kind.IDENTITY, Kind.WORKAREA):
        return f"{table.name}, {table.detail}"
    text = f"= __pa({table.name})"
    return f"{text}, {table.detail}" if table.detail else text


def _c_bit_part(kernel: Kernel, cr3: Cr3, table: Table | None) -> Part:
    mask = kernel.enc.mask
    actual = cr3.raw & cr3.enc.mask
    if not kernel.enc.set_is_encrypted:
        return Part(
            Verdict.FAIL if actual else Verdict.OK, 0, actual, "page tables are private without it"
        )
    if table is not None and table.kind in (Kind.IDENTITY, Kind.WORKAREA, Kind.TRAMPOLINE):
        if not actual:
            why = {
                Kind.IDENTITY: "the kernel has not switched to its own tables yet",
                Kind.WORKAREA: "the kernel encrypts itself through tables without it",
                Kind.TRAMPOLINE: "APs start on it before they enable encryption",
            }[table.kind]
            return Part(Verdict.BY_DESIGN if mask else Verdict.OK, 0, 0, why)
        return Part(Verdict.OK, None, actual, "set")
    if actual == mask:
        why = f"sme_me_mask {mask:#018x}" if mask else "no encryption: sme_me_mask 0"
        return Part(Verdict.OK, mask, actual, why)
    if mask:
        note = ""
        if table is not None and table.kind is Kind.EARLY:
            note = " (__early_make_pgtable strips the mask and would not notice)"
        return Part(Verdict.FAIL, mask, actual, f"the C-bit is missing{note}")
    return Part(Verdict.FAIL, 0, actual, "the C-bit is set although sme_me_mask is 0")

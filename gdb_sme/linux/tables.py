# SPDX-License-Identifier: GPL-2.0-or-later
"""Which top-level table a physical address is: the kernel's own names, and the tasks'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gdb_sme.core.cr3 import CR4_PCIDE, CpuState
from gdb_sme.errors import ReadError
from gdb_sme.linux import percpu
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import (
    WORKAREA_SIZE,
    efi_root,
    initmem_freed,
    on_early_tables,
    page_offset_base,
    system_state_at_least,
)


class Kind(Enum):
    """What a top-level table is for: decides which C-bit its CR3 must have."""

    EARLY = "early"
    INIT = "init"
    TRAMPOLINE = "trampoline"
    WORKAREA = "workarea"
    MM = "mm"
    EFI = "efi"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Table:
    """A known top-level table.

    Attributes:
        kind: what it is for.
        name: the kernel's expression for it: ``early_top_pgt``, ``efi_mm.pgd``.
        pa: its physical address.
        detail: more in words, empty when there is nothing more.
    """

    kind: Kind
    name: str
    pa: int
    detail: str = ""


def early_table(kernel: Kernel) -> Table | None:
    """early_top_pgt by this kernel's name; None when there is none, or its memory was freed."""
    return None if initmem_freed(kernel) else _image_table(kernel, Kind.EARLY, "early_top_pgt")


def init_table(kernel: Kernel) -> Table | None:
    """init_top_pgt by this kernel's name, None when there is none."""
    return _image_table(kernel, Kind.INIT, "init_top_pgt")


def _image_table(kernel: Kernel, kind: Kind, name: str) -> Table | None:
    found, pa = kernel.symbol(name), kernel.pa_of(name)
    return None if found is None or pa is None else Table(kind, found[0], pa)


def trampoline_table(kernel: Kernel) -> Table | None:
    """The table that APs start on: real_mode_header->trampoline_pgd, a physical address.

    arch/x86/include/asm/realmode.h (6.1): the member is a u32.
    """
    header = kernel.read_symbol("real_mode_header")
    pa = kernel.read_field(header, "real_mode_header", "trampoline_pgd") if header else None
    return Table(Kind.TRAMPOLINE, "trampoline_pgd", pa) if pa else None


def efi_table(kernel: Kernel) -> Table | None:
    """The EFI runtime's table, efi_mm.pgd."""
    pa = efi_root(kernel)
    return None if pa is None else Table(Kind.EFI, "efi_mm.pgd", pa)


def loaded_table(kernel: Kernel, cpu: CpuState) -> Table | None:
    """The table that the kernel believes to be loaded on ``cpu``.

    cpu_tlbstate.loaded_mm (4.14 and later; arch/x86/mm/tlb.c), with the task it belongs to.
    """
    mm = percpu.value(kernel, cpu, "cpu_tlbstate", "tlb_state", "loaded_mm")
    pgd = kernel.read_field(mm, "mm_struct", "pgd") if mm else None
    pa = kernel_pa(kernel, pgd) if pgd else None
    if mm is None or pa is None:
        return None
    init = init_table(kernel)
    if init is not None and pa == init.pa:
        return init
    return Table(Kind.MM, "loaded_mm->pgd", pa, _owner(kernel, cpu, mm))


def kernels_table(kernel: Kernel, cpu: CpuState) -> Table | None:
    """The table that ``cpu`` walks by the kernel's own variables, for targets without CR3.

    early_top_pgt while it is in force; then cpu_tlbstate.loaded_mm->pgd or the current task's
    active_mm->pgd, whichever can be read first; for want of both init_top_pgt, with `NO_TASK`.
    """
    if kernel.image is not None and on_early_tables(kernel):
        return early_table(kernel)
    found = loaded_table(kernel, cpu) or _active_table(kernel, cpu)
    if found is None:
        init = init_table(kernel)
        if init is None or not system_state_at_least(kernel, "SYSTEM_RUNNING"):
            return init
        return replace(init, detail=NO_TASK)
    if not isolated(kernel):
        return found
    pair = f"user half of page-table isolation at {found.pa | 0x1000:#x}"
    return replace(found, detail=f"{found.detail}, {pair}" if found.detail else pair)


#: Detail of init_top_pgt where it is all that is known: it has the kernel's half alone.
NO_TASK = "the task's own table is not known, and user addresses with it"

#: X86_CR3_LAM_U57_BIT (arch/x86/include/uapi/asm/processor-flags.h, 6.4 and later).
_LAM_U57_BIT = 61


def build_cr3(kernel: Kernel, cpu: CpuState, table: Table) -> int:
    """What the kernel writes into CR3 to load ``table`` on ``cpu``: build_cr3(), arch/x86/mm/tlb.c.

    With CR4.PCIDE, by the shadow in cpu_tlbstate.cr4, the PCID is loaded_mm_asid + 1; LAM from 6.4
    on. early_top_pgt is loaded without either.
    """
    raw = kernel.sme_pa(table.pa)
    if table.kind is Kind.EARLY:
        return raw
    cr4 = percpu.value(kernel, cpu, "cpu_tlbstate", "tlb_state", "cr4") or 0
    if cr4 & CR4_PCIDE:
        raw |= (percpu.value(kernel, cpu, "cpu_tlbstate", "tlb_state", "loaded_mm_asid") or 0) + 1
    lam = percpu.value(kernel, cpu, "cpu_tlbstate", "tlb_state", "lam") or 0
    return raw | lam << _LAM_U57_BIT


def _active_table(kernel: Kernel, cpu: CpuState) -> Table | None:
    task = current_task(kernel, cpu)
    mm = kernel.read_field(task, "task_struct", "active_mm") if task else None
    pgd = kernel.read_field(mm, "mm_struct", "pgd") if mm else None
    pa = kernel_pa(kernel, pgd) if pgd else None
    if task is None or pa is None:
        return None
    return Table(Kind.MM, "current->active_mm->pgd", pa, task_name(kernel, task))


def isolated(kernel: Kernel) -> bool:
    """Whether page-table isolation is on: every table is a pair, the user's half 4 KiB behind.

    X86_FEATURE_PTI, bit 11 of word 7 (arch/x86/include/asm/cpufeatures.h, 4.15 and later).
    """
    found = kernel.symbol("boot_cpu_data")
    words = kernel.symbols.field("cpuinfo_x86", "x86_capability")
    if found is None or words is None or kernel.image is None:
        return False
    try:
        word = kernel.read_virtual(kernel.image.va_of(found[1]) + words.offset + 4 * 7, 4)
    except ReadError:
        return False
    return bool(int.from_bytes(word, "little") >> 11 & 1)


def _owner(kernel: Kernel, cpu: CpuState, mm: int) -> str:
    task = current_task(kernel, cpu)
    owner = task if task and kernel.read_field(task, "task_struct", "mm") == mm else None
    owner = owner or kernel.read_field(mm, "mm_struct", "owner")
    return task_name(kernel, owner) if owner else ""


def task_name(kernel: Kernel, task: int) -> str:
    """``task 77 (sh)`` for the task_struct at ``task``, empty when it cannot be read."""
    pid = kernel.read_field(task, "task_struct", "pid")
    comm = kernel.symbols.field("task_struct", "comm")
    if pid is None or comm is None:
        return ""
    try:
        raw = kernel.read_virtual(task + comm.offset, comm.size)
    except ReadError:
        return f"task {pid}"
    comm_text = raw.partition(b"\0")[0].decode("ascii", "replace")
    return f"task {pid} ({comm_text})"


def current_task(kernel: Kernel, cpu: CpuState) -> int | None:
    """Address of the task_struct that runs on ``cpu``, None when it cannot be had.

    6.2 moved current_task into pcpu_hot, 6.15 back again.
    """
    # A type that is not there is found missing at once, a symbol only after a long search.
    if kernel.symbols.field("pcpu_hot", "current_task") is not None:
        return percpu.value(kernel, cpu, "pcpu_hot", "pcpu_hot", "current_task")
    return percpu.value(kernel, cpu, "current_task")


def kernel_pa(kernel: Kernel, va: int) -> int | None:
    """Physical address of kernel address ``va``: ``__pa`` for the image and the direct map."""
    if kernel.image is not None and 0 <= va - kernel.image.va < kernel.image.size:
        return va - kernel.image.va + kernel.image.pa
    root = kernel.pa_of("init_top_pgt")
    if root is None or not va >> 63:
        return None
    pa = va - page_offset_base(kernel, kernel.cpus[0])
    if any(pa in span for span in kernel.memory.ram):
        return pa
    mapping = kernel.walk(va, root, kernel.cpus[0]).mapping
    return None if mapping is None else mapping.pa


def identify(kernel: Kernel, pa: int, cpu: CpuState) -> Table | None:
    """Which table ``pa`` is, as ``cpu`` could have it in CR3; None when no table is known there."""
    for table in (early_table(kernel), init_table(kernel)):
        if table is not None and table.pa == pa:
            return table
    efi = efi_table(kernel)
    if efi is not None and efi.pa == pa:
        return efi
    if not cpu.user_mode and not cpu.rip >> 63:
        # The kernel is not in its tables, and they become ordinary memory before .init does.
        start = kernel.pa_of("sme_workarea")
        if start is not None and not initmem_freed(kernel) and start <= pa < start + WORKAREA_SIZE:
            detail = "temporary tables of sme_encrypt_kernel"
            return Table(Kind.WORKAREA, "sme_workarea", pa, detail)
        trampoline = trampoline_table(kernel) if kernel.image is not None else None
        if trampoline is not None and trampoline.pa == pa:
            return trampoline
        return Table(Kind.IDENTITY, "identity map", pa, "of the decompressor or boot loader")
    loaded = loaded_table(kernel, cpu)
    if loaded is not None:
        if loaded.pa == pa:
            return loaded
        if loaded.pa | 0x1000 == pa:
            detail = f"user half of page-table isolation, {loaded.detail or loaded.name}"
            return Table(Kind.MM, loaded.name, pa, detail)
    trampoline = trampoline_table(kernel)
    if trampoline is not None and trampoline.pa == pa:
        return trampoline
    return _untyped_table(kernel, pa)


def _untyped_table(kernel: Kernel, pa: int) -> Table | None:
    """A task's table told by its contents, for symbols without types to find the task by.

    pgd_ctor() copies the kernel's half of init_top_pgt into every pgd (arch/x86/mm/pgtable.c).
    """
    init = init_table(kernel)
    if init is None or kernel.symbols.field("mm_struct", "pgd") is not None:
        return None
    try:
        kernels, own = (kernel.memory.read(at + 2048, 2048) for at in (init.pa, pa))
    except ReadError:
        return None
    marks = ~(1 << 5 | 1 << 6)  # Accessed and Dirty are each table's own
    for at in range(0, 2048, 8):
        wanted, found = (int.from_bytes(half[at : at + 8], "little") for half in (kernels, own))
        if wanted & 1 and (wanted ^ found) & marks:
            return None
    return Table(Kind.MM, "a task's pgd", pa, "by its kernel half; without types, not whose")

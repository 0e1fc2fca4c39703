# SPDX-License-Identifier: GPL-2.0-or-later
"""A walk with what the kernel knows about the address: the answer of `sme pte`."""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.address import PAGE_SIZE, hex_pa
from gdb_sme.core.cr3 import CpuState, Cr3
from gdb_sme.core.walk import Walk
from gdb_sme.errors import SymbolError, TargetError, UsageError
from gdb_sme.linux import exceptions, tables
from gdb_sme.linux.cr3check import missing_image
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.layout import region_of
from gdb_sme.linux.nonpresent import NonPresent, decode_nonpresent, swap_layout
from gdb_sme.linux.symbols import canonical


@dataclass(frozen=True, slots=True)
class Root:
    """The page-table root that a walk starts from.

    Attributes:
        pa: physical address of the top table, without encryption bit.
        raw: the value that it was taken from (CR3, or the table's __sme_pa).
        c_bit: whether the encryption bit is set in ``raw``; None where there is no such value.
        source: where it comes from: ``"CR3 of CPU 0"``, ``"--root init_top_pgt"``.
        table: the kernel's name of the table, None when it has none.
    """

    pa: int
    raw: int
    c_bit: bool | None
    source: str
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A walk and its surroundings.

    Attributes:
        walk: the walk.
        root: what it started from.
        region: the region of the kernel's memory layout, None in the hole between the halves.
        symbol: nearest symbol, ``"init_top_pgt+0x8"``, None without one.
        memory_type: ``"write-back"`` and so on, None when the walk did not end in memory.
        note: why a page without the C-bit is so by design, None when there is nothing to say.
        nonpresent: what the last entry holds when it is not present, None otherwise.
        moved: the symbol that the symbol file has here and where KASLR has put it, None when the
            kernel is where it was linked, or the address is another.
    """

    walk: Walk
    root: Root
    region: str | None
    symbol: str | None
    memory_type: str | None
    note: str | None = None
    nonpresent: NonPresent | None = None
    moved: tuple[str, int] | None = None


#: Memory types by index into the PAT MSR, as Linux programs it: 0x0407050600070106
#: (pat_bp_init() in arch/x86/mm/pat/memtype.c, 6.1).
LINUX_PAT = (
    "write-back",
    "write-combining",
    "uncached-minus",
    "uncached",
    "write-back",
    "write-protected",
    "uncached-minus",
    "write-through",
)


def translate(kernel: Kernel, va: int, cpu: CpuState, root: Root) -> Translation:
    """Walk ``va`` from ``root`` as ``cpu`` would and add what the kernel knows about it.

    Raises:
        AddressError: ``va`` (0 to 2**64-1) is not canonical.
    """
    found = kernel.walk(va, root.pa, cpu)
    mapping = found.mapping
    return Translation(
        walk=found,
        root=root,
        region=region_of(kernel, cpu, va),
        symbol=_nearest_symbol(kernel, va),
        memory_type=LINUX_PAT[mapping.cache_index] if mapping else None,
        note=why_unencrypted(kernel, va, mapping.pa)
        if mapping and kernel.enc.mask and not mapping.encrypted
        else None,
        nonpresent=_nonpresent(kernel, found),
        moved=_moved(kernel, va),
    )


def _moved(kernel: Kernel, va: int) -> tuple[str, int] | None:
    """What was linked at ``va``, and where it is now."""
    image = kernel.image
    if image is None or not image.text <= va < image.end or 0 <= va - image.va < image.size:
        return None
    linked = kernel.symbols.nearest(va)
    return None if linked is None else (linked[0], va + image.koff)


def _nearest_symbol(kernel: Kernel, va: int) -> str | None:
    """``init_top_pgt+0x8``; None where the symbols are not known to be the running kernel's.

    None in user space too: the kernel's per-CPU symbols are at addresses there.
    """
    if kernel.image is None or not va >> 63:
        return None
    nearest = kernel.symbols.nearest(va - kernel.image.koff)
    if nearest is None:
        return None
    return f"{nearest[0]}+{nearest[1]:#x}" if nearest[1] else nearest[0]


def _nonpresent(kernel: Kernel, found: Walk) -> NonPresent | None:
    if found.hole is None:
        return None
    return decode_nonpresent(found.steps[-1].entry, found.mode, swap_layout(kernel.symbols))


def root_of_cpu(kernel: Kernel, cpu: CpuState) -> Root:
    """The root in CR3 of ``cpu``; where the target gives no CR3, the kernel's own idea of it.

    Raises:
        TargetError: paging is off, or there is neither CR3 nor a kernel to tell.
    """
    cr3 = kernel.cr3(cpu)
    if cr3 is None:
        known = tables.kernels_table(kernel, cpu)
        if known is None:
            raise TargetError(f"this target gives no CR3, and {_untold(kernel)}")
        source = f"{known.name} of CPU {cpu.index}, by the kernel's variables"
        raw = kernel.sme_pa(known.pa)
        half = ", the kernel's half alone" if known.detail == tables.NO_TASK else ""
        return Root(known.pa, raw, bool(kernel.enc.mask), source, known.name + half)
    if not cpu.paging:
        raise TargetError(
            f"paging is off on CPU {cpu.index}; continue to long mode, or name a root with --root"
        )
    table = tables.identify(kernel, cr3.pa, cpu)
    return Root(
        cr3.pa, cr3.raw, cr3.c_bit, f"CR3 of CPU {cpu.index}", table.name if table else None
    )


def _untold(kernel: Kernel) -> str:
    if kernel.image is None:
        return missing_image(kernel)
    return "the symbols tell of no table; name a root: --root init_top_pgt"


def root_of_symbol(kernel: Kernel, name: str) -> Root | None:
    """The table that is symbol ``name`` of the kernel image, or that of the mm_struct ``name``.

    None when there is no such symbol.

    Raises:
        SymbolError: early_top_pgt, after it was freed; an mm_struct without tables.
        UsageError: the symbol is neither.
    """
    found, pa = kernel.symbol(canonical(name)), kernel.pa_of(canonical(name))
    if found is None or pa is None:
        return None
    mm_size = kernel.symbols.type_size("mm_struct")
    if mm_size is not None and kernel.symbols.size(found[0]) == mm_size:
        return _root_of_mm(kernel, *found)
    if pa % PAGE_SIZE:
        raise UsageError(f"--root {name}: {found[0]} at {hex_pa(pa)} is no page table: not aligned")
    if canonical(name) == "early_top_pgt" and tables.early_table(kernel) is None:
        raise SymbolError(f"{found[0]} was freed after boot; there is no table any more")
    return Root(pa, kernel.sme_pa(pa), bool(kernel.enc.mask), f"--root {name}", found[0])


def _root_of_mm(kernel: Kernel, name: str, linked: int) -> Root:
    """The table of an mm_struct of the kernel image, such as efi_mm; ``linked`` is its address."""
    assert kernel.image is not None
    pgd = kernel.read_field(kernel.image.va_of(linked), "mm_struct", "pgd")
    pa = tables.kernel_pa(kernel, pgd) if pgd else None
    if pa is None:
        raise SymbolError(f"{name}.pgd is {pgd or 0:#x}: {name} has no page tables")
    return Root(pa, kernel.sme_pa(pa), bool(kernel.enc.mask), f"--root {name}", f"{name}.pgd")


def root_of_value(kernel: Kernel, raw: int, cpu: CpuState) -> Root:
    """The root in ``raw``, a value for CR3."""
    cr3 = Cr3(raw, kernel.table_enc, cpu.pcide)
    table = tables.identify(kernel, cr3.pa, cpu)
    return Root(cr3.pa, raw, cr3.c_bit, f"--root {raw:#x}", table.name if table else None)


def why_unencrypted(kernel: Kernel, va: int, pa: int) -> str | None:
    """Why the page at ``va`` has no C-bit by design, None when nothing explains it."""
    if not any(pa in known for known in kernel.memory.ram):
        return "device memory: by design"
    return next((e.reason for e in exceptions.unencrypted(kernel) if e.covers(va, pa)), None)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Regions of the kernel's virtual memory.

Documentation/x86/x86_64/mm.rst (6.1) and arch/x86/include/asm/pgtable_64_types.h (6.1, 6.12). The
bases that CONFIG_RANDOMIZE_MEMORY moves are read from the kernel's variables.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.cr3 import CpuState
from gdb_sme.linux.image import KERNEL_IMAGE_SIZE, START_KERNEL_MAP
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import page_offset_base

TIB = 1 << 40


@dataclass(frozen=True, slots=True)
class Region:
    """A region: virtual addresses ``start`` to ``end``, the end not included."""

    name: str
    start: int
    end: int


#: Same place with 4 and 5 levels.
_FIXED = (
    Region("cpu_entry_area", 0xFFFFFE0000000000, 0xFFFFFE8000000000),
    Region("espfix", 0xFFFFFF0000000000, 0xFFFFFF8000000000),
    Region("EFI runtime", 0xFFFFFFEF00000000, 0xFFFFFFFF00000000),
    Region("fixmap", 0xFFFFFFFFFF000000, 0xFFFFFFFFFF600000),
    Region("vsyscall", 0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000),
)


def regions(kernel: Kernel, cpu: CpuState) -> tuple[Region, ...]:
    """All regions with the bases that are in force, lowest address first."""
    five = cpu.mode.va_bits == 57
    direct = page_offset_base(kernel, cpu)
    vmalloc = kernel.read_symbol("vmalloc_base") or (
        0xFFA0000000000000 if five else 0xFFFFC90000000000
    )
    vmemmap = kernel.read_symbol("vmemmap_base") or (
        0xFFD4000000000000 if five else 0xFFFFEA0000000000
    )
    image_va = kernel.image.va if kernel.image else START_KERNEL_MAP
    image_end = image_va + kernel.image.size if kernel.image else START_KERNEL_MAP
    # Without CONFIG_RANDOMIZE_BASE the modules begin 512 MiB above __START_KERNEL_map.
    randomized = kernel.symbols.address("kaslr_get_random_long") is not None
    modules = START_KERNEL_MAP + (KERNEL_IMAGE_SIZE if randomized else KERNEL_IMAGE_SIZE // 2)
    ldt = (0xFF10 << 48, 0xFF11 << 48) if five else (0xFFFF8800 << 32, 0xFFFF8880 << 32)
    kasan = 0xFFDF000000000000 if five else 0xFFFFEC0000000000
    found = [
        Region("user space", 0, 1 << (cpu.mode.va_bits - 1)),
        Region("LDT remap", *ldt),
        Region("direct map", direct, min(direct + (32 << 50 if five else 64 * TIB), vmalloc)),
        Region("vmalloc", vmalloc, min(vmalloc + (12800 if five else 32) * TIB, vmemmap)),
        Region("vmemmap", vmemmap, vmemmap + (512 if five else 1) * TIB),
        Region("KASAN shadow", kasan, 0xFFFFFC0000000000),
        *_FIXED,
        Region("kernel image", image_va, image_end),
        Region("modules", modules, 0xFFFFFFFFFF000000),
    ]
    return tuple(sorted(found, key=lambda region: region.start))


def region_of(kernel: Kernel, cpu: CpuState, va: int) -> str | None:
    """Name of the region that ``va`` is in, None in none."""
    return next((r.name for r in regions(kernel, cpu) if r.start <= va < r.end), None)

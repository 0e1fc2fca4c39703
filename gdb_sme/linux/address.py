# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's address arithmetic: __pa, __pa_nodebug, __va, as its macros calculate.

arch/x86/include/asm/page.h and page_64.h, arch/x86/mm/physaddr.c (6.1 and 6.12).
"""

from __future__ import annotations

from gdb_sme.core.address import U64
from gdb_sme.core.cr3 import CpuState
from gdb_sme.errors import AddressError, SymbolError
from gdb_sme.linux.cr3check import missing_image
from gdb_sme.linux.image import KERNEL_IMAGE_SIZE, START_KERNEL_MAP
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import page_offset_base

#: MAX_PHYSMEM_BITS with 4 and 5 levels (arch/x86/include/asm/sparsemem.h).
_PHYSMEM_BITS = {48: 46, 57: 52}


def pa_nodebug(kernel: Kernel, cpu: CpuState, va: int) -> int:
    """``__pa_nodebug``: phys_base for the kernel image, page_offset_base for everything below.

    Calculates for any ``va`` (0 to 2**64-1) and wraps at 64 bits (__phys_addr_nodebug()).

    Raises:
        SymbolError: the place of the kernel image is not known.
    """
    if va >= START_KERNEL_MAP:
        if kernel.image is None:
            raise SymbolError(missing_image(kernel))
        return (va - START_KERNEL_MAP + kernel.image.phys_base) & U64
    return (va - page_offset_base(kernel, cpu)) & U64


def pa(kernel: Kernel, cpu: CpuState, va: int) -> int:
    """``__pa``: as `pa_nodebug`, with the checks of CONFIG_DEBUG_VIRTUAL (__phys_addr()).

    Raises:
        AddressError: ``va`` is neither in the kernel image nor in the direct map.
        SymbolError: the place of the kernel image is not known.
    """
    found = pa_nodebug(kernel, cpu, va)
    inside = (
        va < START_KERNEL_MAP + KERNEL_IMAGE_SIZE
        if va >= START_KERNEL_MAP
        else bool(va >> 63) and not found >> _PHYSMEM_BITS[cpu.mode.va_bits]
    )
    if not inside:
        raise AddressError(
            f"{va:#x} is neither in the kernel image nor in the direct map; "
            "to translate any mapped address use: sme pte"
        )
    return found


def sme_va(kernel: Kernel, cpu: CpuState, pa_: int) -> int:
    """``__va`` of ``pa_`` (0 to 2**64-1) after the encryption mask was taken off it."""
    return ((pa_ & ~kernel.enc.mask) + page_offset_base(kernel, cpu)) & U64

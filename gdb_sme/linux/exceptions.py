# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the kernel leaves without the C-bit on purpose: one function a case.

The list and its sources: docs/kernel.md. Addresses come from the kernel's own variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gdb_sme.core.ports import Range
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.tables import kernel_pa


@dataclass(frozen=True, slots=True)
class Exempt:
    """Physical memory that is mapped unencrypted by design.

    Attributes:
        name: short name of the case.
        reason: why, in words.
        physical: the physical range.
        virtual: the virtual range that alone is so mapped; None for every mapping of it.
    """

    name: str
    reason: str
    physical: Range
    virtual: Range | None = None

    def covers(self, va: int, pa: int) -> bool:
        """Whether the page at ``va``, mapped to ``pa``, is meant."""
        return pa in self.physical and (self.virtual is None or va in self.virtual)


def bss_decrypted(kernel: Kernel) -> Iterator[Exempt]:
    """.bss..decrypted in the kernel image; its alias in the direct map keeps the C-bit.

    sme_postprocess_startup(), arch/x86/kernel/head64.c (6.1 and 6.12).
    """
    start, end = kernel.symbol("__start_bss_decrypted"), kernel.symbol("__end_bss_decrypted")
    if start is None or end is None or kernel.image is None or start[1] == end[1]:
        return
    image = kernel.image
    yield Exempt(
        ".bss..decrypted",
        ".bss..decrypted: by design",
        Range(image.pa_of(start[1]), image.pa_of(end[1])),
        Range(image.va_of(start[1]), image.va_of(end[1])),
    )


def swiotlb(kernel: Kernel) -> Iterator[Exempt]:
    """The software I/O TLB, through which devices see memory that they cannot decrypt.

    swiotlb_update_mem_attributes(), kernel/dma/swiotlb.c; 6.6 moved the pool into ``defpool``.
    """
    found = kernel.symbol("io_tlb_default_mem")
    if found is None or kernel.image is None:
        return
    va = kernel.image.va_of(found[1])
    for prefix in ("defpool.", ""):
        start = kernel.read_field(va, "io_tlb_mem", f"{prefix}start")
        end = kernel.read_field(va, "io_tlb_mem", f"{prefix}end")
        if start and end and start < end:
            yield Exempt("swiotlb", "swiotlb: by design", Range(start, end))
            return


def trampoline(kernel: Kernel) -> Iterator[Exempt]:
    """The real-mode trampoline, which APs run before they enable encryption: SME only.

    setup_real_mode(), arch/x86/realmode/init.c (6.1: under CC_ATTR_HOST_MEM_ENCRYPT).
    """
    if kernel.encryption.guest:
        return
    header = kernel.read_symbol("real_mode_header")
    blob, end = kernel.symbol("real_mode_blob"), kernel.symbol("real_mode_blob_end")
    if not header or blob is None or end is None:
        return
    pa = kernel_pa(kernel, header)
    if pa is not None:
        size = (end[1] - blob[1] + 0xFFF) & ~0xFFF
        yield Exempt("trampoline", "real-mode trampoline: by design", Range(pa, pa + size))


def vga(_kernel: Kernel) -> Iterator[Exempt]:
    """The VGA text window, unencrypted when vgacon is built in (arch/x86/include/asm/vga.h)."""
    yield Exempt("vga", "VGA window: by design", Range(0xB8000, 0xC0000))


CASES: tuple[Callable[[Kernel], Iterator[Exempt]], ...] = (
    bss_decrypted,
    swiotlb,
    trampoline,
    vga,
)


def unencrypted(kernel: Kernel) -> Iterator[Exempt]:
    """Every case that this kernel has."""
    for case in CASES:
        yield from case(kernel)

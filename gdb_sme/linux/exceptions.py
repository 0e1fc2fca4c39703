# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the kernel leaves without the C-bit on purpose: one function a case.

Addresses come from the kernel's own variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gdb_sme.core.address import PAGE_SIZE, align_down, align_up
from gdb_sme.core.ports import Range
from gdb_sme.encryption.scheme import SEV_ES_ENABLED
from gdb_sme.linux import e820, percpu
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.lists import linked, members
from gdb_sme.linux.stage import page_offset_base
from gdb_sme.linux.tables import kernel_pa


@dataclass(frozen=True, slots=True)
class Exempt:
    """Physical memory that is mapped unencrypted by design.

    Attributes:
        name: short name of the case.
        reason: why, in words.
        physical: the physical range.
        virtual: the virtual range that alone is so mapped; None for every mapping of it.
        source: where the kernel does it.
    """

    name: str
    reason: str
    physical: Range
    virtual: Range | None = None
    source: str = ""

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
        "sme_postprocess_startup() in arch/x86/kernel/head64.c",
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
            yield Exempt(
                "swiotlb",
                "swiotlb: by design",
                Range(start, end),
                source="swiotlb_update_mem_attributes() in kernel/dma/swiotlb.c",
            )
            return


def trampoline(kernel: Kernel) -> Iterator[Exempt]:
    """The real-mode trampoline, which APs run before they enable encryption: SME only.

    setup_real_mode(), arch/x86/realmode/init.c (6.1: under CC_ATTR_HOST_MEM_ENCRYPT).
    """
    if kernel.encryption.guest:
        return
    header = kernel.read_symbol("real_mode_header")
    size = trampoline_size(kernel)
    pa = kernel_pa(kernel, header) if header else None
    if pa is not None and size:
        yield Exempt(
            "trampoline",
            "real-mode trampoline: by design",
            Range(pa, pa + size),
            source="setup_real_mode() in arch/x86/realmode/init.c",
        )


def trampoline_size(kernel: Kernel) -> int:
    """Bytes of the trampoline's pages, 0 when this kernel has none."""
    blob, end = kernel.symbol("real_mode_blob"), kernel.symbol("real_mode_blob_end")
    return 0 if blob is None or end is None else align_up(end[1] - blob[1], PAGE_SIZE)


def vga(_kernel: Kernel) -> Iterator[Exempt]:
    """The VGA text window, unencrypted when vgacon is built in.

    VGA_MAP_MEM, arch/x86/include/asm/vga.h (6.1 and 6.12).
    """
    yield Exempt(
        "vga",
        "VGA window: by design",
        Range(0xB8000, 0xC0000),
        source="VGA_MAP_MEM in arch/x86/include/asm/vga.h",
    )


def atomic_pools(kernel: Kernel) -> Iterator[Exempt]:
    """The pools of coherent DMA memory for those that cannot sleep, under SME too.

    atomic_pool_expand(), kernel/dma/pool.c (6.1 and 6.12).
    """
    fields = members(kernel, "gen_pool_chunk", "start_addr", "end_addr")
    chunks = kernel.symbols.field("gen_pool", "chunks")
    if fields is None or chunks is None:
        return
    for name in ("atomic_pool_kernel", "atomic_pool_dma", "atomic_pool_dma32"):
        pool = kernel.read_symbol(name)
        if not pool:
            continue
        chain = linked(kernel, pool + chunks.offset, "gen_pool_chunk", "next_chunk", fields)
        for start, last in chain:
            pa = kernel_pa(kernel, start)
            if pa is not None and start < last:
                yield Exempt(
                    "atomic DMA pool",
                    f"{name}: by design",
                    Range(pa, pa + last + 1 - start),
                    source="atomic_pool_expand() in kernel/dma/pool.c",
                )


def percpu_shared(kernel: Kernel) -> Iterator[Exempt]:
    """The per-CPU variables that a KVM host reads and writes; their whole pages are unencrypted.

    sev_map_percpu_data(), arch/x86/kernel/kvm.c (6.1 and 6.12).
    """
    if not kernel.encryption.guest or not on_kvm(kernel):
        return
    for name in ("apf_reason", "steal_time", "kvm_apic_eoi"):
        for va, size in percpu.instances(kernel, name):
            pa = kernel_pa(kernel, va)
            if pa is not None:
                yield Exempt(
                    "per-CPU",
                    f"{name}, shared with the host: by design",
                    Range(align_down(pa, PAGE_SIZE), align_up(pa + size, PAGE_SIZE)),
                    source="sev_map_percpu_data() in arch/x86/kernel/kvm.c",
                )


def on_kvm(kernel: Kernel) -> bool:
    """Whether the kernel found itself to be a guest of KVM: ``x86_hyper_type``."""
    kvm = kernel.symbols.enumerator("X86_HYPER_KVM")
    return kvm is not None and kernel.read_symbol("x86_hyper_type", 4) == kvm


def ghcbs(kernel: Kernel) -> Iterator[Exempt]:
    """The communication blocks of an SEV-ES guest: ``ghcb_page`` of every CPU's runtime data.

    init_ghcb() and early_set_memory_decrypted() in arch/x86/kernel/sev.c (6.1),
    arch/x86/coco/sev/core.c (6.12).
    """
    if not kernel.evidence.sev(SEV_ES_ENABLED):
        return
    page = kernel.symbols.field("sev_es_runtime_data", "ghcb_page")
    for va, _ in percpu.instances(kernel, "runtime_data") if page is not None else ():
        data = int.from_bytes(kernel.read_virtual(va, 8), "little")
        pa = kernel_pa(kernel, data + page.offset) if data and page else None
        if pa is not None:
            yield Exempt(
                "GHCB",
                "GHCB, shared with the hypervisor: by design",
                Range(pa, pa + PAGE_SIZE),
                source="init_ghcb() in arch/x86/kernel/sev.c",
            )


#: vm_struct.flags: include/linux/vmalloc.h.
VM_IOREMAP = 1


def ioremaps(kernel: Kernel) -> Iterator[Exempt]:
    """What ioremap() and memremap() have mapped that is no RAM: devices, firmware tables.

    __ioremap_caller(), arch/x86/mm/ioremap.c (6.1 and 6.12).
    """
    ram = e820.ram(kernel)
    for va, size, pa in io_areas(kernel):
        if not any(pa in each for each in ram):
            yield Exempt(
                "ioremap",
                "ioremap of device or firmware memory: by design",
                Range(pa, pa + size),
                Range(va, va + size),
                "__ioremap_caller() in arch/x86/mm/ioremap.c",
            )


def io_areas(kernel: Kernel) -> Iterator[tuple[int, int, int]]:
    """Virtual address, size in bytes (with the guard page) and physical address of each ioremap.

    mm/vmalloc.c: one list, vmap_area_list; since 6.9 one a node of vmap_nodes.
    """
    area = members(kernel, "vmap_area", "vm")
    fields = members(kernel, "vm_struct", "addr", "size", "flags", "phys_addr")
    if area is None or fields is None:
        return
    for head in _area_lists(kernel):
        for (vm,) in linked(kernel, head, "vmap_area", "list", area):
            if not vm:
                continue
            va, size, flags, pa = fields.read(kernel, vm)
            if flags & VM_IOREMAP:
                yield va, size, pa


def _area_lists(kernel: Kernel) -> Iterator[int]:
    """Addresses of the heads of the lists of vmap_area."""
    busy = kernel.symbols.field("vmap_node", "busy.head")
    if busy is None:
        found = kernel.symbol("vmap_area_list")
        if found is not None and kernel.image is not None:
            yield kernel.image.va_of(found[1])
        return
    nodes, size = kernel.read_symbol("vmap_nodes"), kernel.symbols.type_size("vmap_node")
    if nodes and size:
        for number in range(kernel.read_symbol("nr_vmap_nodes", 4) or 1):
            yield nodes + number * size + busy.offset


def crash_kernel(kernel: Kernel) -> Iterator[Exempt]:
    """The control pages of a loaded crash kernel, which run with encryption off, in the direct map.

    The kernel keeps its copy of VMCOREINFO on one of them, mapped again with the C-bit.
    kimage_alloc_crash_control_pages() and kimage_crash_copy_vmcoreinfo() in kernel/kexec_core.c,
    arch_kexec_post_alloc_pages() in arch/x86/kernel/machine_kexec_64.c (6.1 and 6.12).
    """
    image, reserved = kernel.read_symbol("kexec_crash_image"), kernel.symbol("crashk_res")
    if not image or reserved is None or kernel.image is None:
        return
    start = kernel.read_field(kernel.image.va_of(reserved[1]), "resource", "start")
    last = kernel.read_field(image, "kimage", "control_page")
    if start and last and start < last:
        end = align_up(last, PAGE_SIZE)  # it is the last byte's address, not the end
        direct_map = page_offset_base(kernel, kernel.cpus[0])
        yield Exempt(
            "crash kernel",
            "control pages of the crash kernel: by design",
            Range(start, end),
            Range(direct_map + start, direct_map + end),
            "kimage_alloc_crash_control_pages() in kernel/kexec_core.c",
        )


CASES: tuple[Callable[[Kernel], Iterator[Exempt]], ...] = (
    bss_decrypted,
    swiotlb,
    trampoline,
    vga,
    atomic_pools,
    percpu_shared,
    ghcbs,
    ioremaps,
    crash_kernel,
)


def unencrypted(kernel: Kernel) -> Iterator[Exempt]:
    """Every case that this kernel has."""
    for case in CASES:
        yield from case(kernel)

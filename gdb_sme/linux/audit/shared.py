# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on memory that is shared with devices, other CPUs' start, or the hypervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gdb_sme.core.address import size_text
from gdb_sme.encryption.scheme import SEV_ES_ENABLED
from gdb_sme.linux import exceptions
from gdb_sme.linux.audit.model import Outcome, judged, not_applicable, rule
from gdb_sme.linux.audit.view import View
from gdb_sme.linux.exceptions import Exempt
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.tables import kernel_pa


def _in_direct_map(
    view: View, case: Callable[[Kernel], Iterator[Exempt]], none: str, *, encrypted: bool = False
) -> Outcome:
    """Judge that the direct map has the memory of ``case`` so; ``none``: why there may be none."""
    # Several variables may lie in one page.
    areas = list(dict.fromkeys((a.physical.start, a.physical.size) for a in case(view.kernel)))
    if not areas:
        return not_applicable(none)
    return _judge(view, areas, encrypted)


def _judge(view: View, areas: list[tuple[int, int]], encrypted: bool) -> Outcome:
    wrong = [
        found
        for pa, size in areas
        for found in view.within(view.page_offset + pa, view.page_offset + pa + size)
        if found.attributes.encrypted is not encrypted
    ]
    where = ", ".join(f"{size_text(size)} at {pa:#x}" for pa, size in areas[:4])
    if len(areas) > 4:
        where += f" and {len(areas) - 4} more"
    return judged(where, view.places(wrong, "no C-bit" if encrypted else "C-bit is set"))


@rule(
    "swiotlb-decrypted",
    what="the software I/O TLB is mapped without the C-bit",
    why="devices do not decrypt: they would see ciphertext",
    source="swiotlb_update_mem_attributes() in kernel/dma/swiotlb.c, from mem_encrypt_init()",
)
def swiotlb_decrypted(view: View) -> Outcome:
    """The pool in the direct map."""
    if not view.reached("SYSTEM_SCHEDULING"):
        return not_applicable("before mem_encrypt_init()")
    return _in_direct_map(view, exceptions.swiotlb, "there is no swiotlb pool")


@rule(
    "dma-pools-decrypted",
    what="the atomic pools of coherent DMA memory are mapped without the C-bit",
    why="devices do not decrypt: they would see ciphertext",
    source="atomic_pool_expand() in kernel/dma/pool.c",
)
def dma_pools_decrypted(view: View) -> Outcome:
    """Every chunk of the three pools."""
    return _in_direct_map(view, exceptions.atomic_pools, "no atomic pool is set up")


@rule(
    "trampoline",
    what="the real-mode trampoline is mapped without the C-bit under SME, with it under SEV",
    why="CPUs run it before paging: plain text on a host, private in a guest",
    source="setup_real_mode() in arch/x86/realmode/init.c",
)
def trampoline(view: View) -> Outcome:
    """The blob behind real_mode_header."""
    if not view.reached("SYSTEM_RUNNING"):
        return not_applicable("before init_real_mode()")
    kernel = view.kernel
    header = kernel.read_symbol("real_mode_header")
    pa = kernel_pa(kernel, header) if header else None
    size = exceptions.trampoline_size(kernel)
    if pa is None or not size:
        return not_applicable("there is no real-mode trampoline")
    return _judge(view, [(pa, size)], encrypted=view.guest)


@rule(
    "percpu-decrypted",
    what="per-CPU variables that the KVM host reads and writes are mapped without the C-bit",
    why="the host would see ciphertext, the guest the host's values as garbage",
    source="sev_map_percpu_data() in arch/x86/kernel/kvm.c; DEFINE_PER_CPU_DECRYPTED",
)
def percpu_decrypted(view: View) -> Outcome:
    """apf_reason, steal_time and kvm_apic_eoi of every CPU."""
    if not view.guest:
        return not_applicable("not a SEV guest")
    if not exceptions.on_kvm(view.kernel):
        return not_applicable("not a guest of KVM")
    if not view.reached("SYSTEM_SCHEDULING"):
        return not_applicable("smp_prepare_boot_cpu() may still have to share them")
    return _in_direct_map(view, exceptions.percpu_shared, "this kernel has none of them")


@rule(
    "ghcb-decrypted",
    what="the communication block of every CPU is mapped without the C-bit",
    why="the hypervisor cannot answer a #VC that it cannot read",
    source="init_ghcb() in arch/x86/kernel/sev.c (6.1), arch/x86/coco/sev/core.c (6.12)",
)
def ghcb_decrypted(view: View) -> Outcome:
    """ghcb_page of every CPU's runtime data."""
    if not view.kernel.evidence.sev(SEV_ES_ENABLED):
        return not_applicable("not a SEV-ES guest")
    if not _ghcbs_shared(view.kernel):
        return not_applicable("before the end of sev_es_init_vc_handling()")
    return _in_direct_map(view, exceptions.ghcbs, "runtime_data of the CPUs cannot be read")


def _ghcbs_shared(kernel: Kernel) -> bool:
    """Whether init_ghcb() has done all CPUs: sev_es_init_vc_handling() then switches the handler.

    arch/x86/kernel/sev.c (6.1), arch/x86/coco/sev/core.c (6.12).
    """
    handler = kernel.symbol("kernel_exc_vmm_communication")
    current = kernel.read_symbol("initial_vc_handler")
    if handler is None or current is None or kernel.image is None:
        return True
    return current == kernel.image.va_of(handler[1])

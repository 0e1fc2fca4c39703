# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit: rules on which memory must carry the C-bit and which must not.

To add a rule: one function with its name, reason and source in the module of its theme, and its
line in `RULES`. What the kernel leaves unencrypted by design is in ``gdb_sme.linux.exceptions``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gdb_sme.core.cr3 import CpuState
from gdb_sme.linux.audit import devices, image, masks, memory, shared, tables
from gdb_sme.linux.audit.model import Audit, Result, Rule
from gdb_sme.linux.audit.view import View
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import boot_stage

RULES: tuple[Rule, ...] = (
    masks.cr3,
    masks.masks_agree,
    masks.early_pmd_flags,
    masks.protection_map,
    tables.tables_well_formed,
    tables.table_entries_encrypted,
    tables.table_pages_encrypted,
    tables.kernel_half_shared,
    image.kernel_text_encrypted,
    image.kernel_data_encrypted,
    image.bss_decrypted,
    memory.direct_map_encrypted,
    memory.kernel_memory_encrypted,
    memory.lower_half_encrypted,
    memory.boot_data_unmapped,
    memory.views_agree,
    memory.no_writable_code,
    shared.swiotlb_decrypted,
    shared.dma_pools_decrypted,
    shared.trampoline,
    shared.percpu_decrypted,
    shared.ghcb_decrypted,
    devices.mmio_decrypted,
    devices.ioremaps_known,
    devices.firmware_tables,
    devices.vga_decrypted,
    devices.efi_runtime,
)


def audit(
    kernel: Kernel,
    cpu: CpuState,
    rules: Iterable[Rule] = RULES,
    progress: Callable[[int], None] | None = None,
) -> tuple[Audit, View]:
    """Judge the kernel by ``rules``; the answer, and the view that it was taken from.

    Args:
        kernel: the kernel at this stop.
        cpu: the CPU whose tables are audited.
        rules: the rules to ask.
        progress: called with a virtual address for every table that is read.

    Raises:
        TargetError: the kernel is not on tables of its own yet.
    """
    view = View(kernel, cpu, progress)
    with kernel.memory.batch():
        results = tuple(Result(each, each(view)) for each in rules)
    root = f"{view.root.table or hex(view.root.pa)} ({view.root.source})"
    encryption = kernel.encryption
    return (
        Audit(encryption.title, encryption.bit.position, root, str(boot_stage(kernel)), results),
        view,
    )

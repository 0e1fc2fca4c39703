# SPDX-License-Identifier: GPL-2.0-or-later
"""How far the boot has come, judged from CPU 0 (the boot CPU) and the kernel's own variables.

The order is that of arch/x86/kernel/head_64.S, head64.c and init/main.c (6.1 and 6.12).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.entry import PRESENT
from gdb_sme.errors import ReadError, TargetError
from gdb_sme.linux.image import START_KERNEL_MAP
from gdb_sme.linux.kernel import Kernel

#: include/linux/kernel.h (6.1, 6.12), for symbol files without the enumerators.
_SYSTEM_STATES = {"SYSTEM_SCHEDULING": 1, "SYSTEM_FREEING_INITMEM": 2, "SYSTEM_RUNNING": 3}

_RESET_VECTOR = 0xFFF0

#: struct gate_struct (arch/x86/include/asm/desc_defs.h): three parts of the handler's address.
_GATE = struct.Struct("<H4xHI4x")
_PAGE_FAULT = 14
#: 32 handlers of at most 16 bytes (EARLY_IDT_HANDLER_SIZE, arch/x86/include/asm/segment.h).
_EARLY_HANDLERS_SIZE = 32 * 16
_RESET_CS = 0xF000


class Stage(IntEnum):
    """Stages of the boot in their order."""

    RESET = 0
    REAL_MODE = 1
    PROTECTED_MODE = 2
    DECOMPRESSOR = 3
    IDENTITY = 4
    EARLY = 5
    INIT = 6
    RUNNING = 7


TITLES = {
    Stage.RESET: "reset",
    Stage.REAL_MODE: "real mode",
    Stage.PROTECTED_MODE: "32-bit protected mode",
    Stage.DECOMPRESSOR: "decompressor",
    Stage.IDENTITY: "startup_64, at identity addresses",
    Stage.EARLY: "early boot, on early_top_pgt",
    Stage.INIT: "on init_top_pgt, before user space",
    Stage.RUNNING: "running",
}


@dataclass(frozen=True, slots=True)
class BootStage:
    """A stage and what else is known of it.

    Attributes:
        stage: the stage.
        detail: more of it, in words; empty when there is no more.
    """

    stage: Stage
    detail: str = ""

    def __str__(self) -> str:
        title = TITLES[self.stage]
        return f"{title} ({self.detail})" if self.detail else title


def system_state_at_least(kernel: Kernel, name: str) -> bool:
    """Whether the kernel's ``system_state`` has reached enumerator ``name``."""
    state = kernel.read_symbol("system_state", 4)
    if not state:
        return False  # SYSTEM_BOOTING is the first: no need to look the other up
    wanted = kernel.symbols.enumerator(name)
    return state >= (_SYSTEM_STATES[name] if wanted is None else wanted)


def initmem_freed(kernel: Kernel) -> bool:
    """Whether .init memory, early_top_pgt in it, may be poisoned and in other use already."""
    return system_state_at_least(kernel, "SYSTEM_FREEING_INITMEM")


def boot_stage(kernel: Kernel) -> BootStage:
    """The stage that the machine is in."""
    boot_cpu = kernel.cpus[0]
    if not boot_cpu.protected:
        return _real_mode(boot_cpu)
    if not boot_cpu.long_mode or not boot_cpu.paging:
        return BootStage(Stage.PROTECTED_MODE, "firmware, or the decompressor's 32-bit entry")
    image = kernel.image
    if image is None:
        return _without_image(kernel, boot_cpu)
    if system_state_at_least(kernel, "SYSTEM_RUNNING"):
        return BootStage(Stage.RUNNING, "CPU 0 in user mode" if boot_cpu.user_mode else "")
    if boot_cpu.rip < START_KERNEL_MAP and not _high_half(boot_cpu.rip):
        if 0 <= boot_cpu.rip - image.pa < image.size:
            return BootStage(Stage.IDENTITY, _identity_detail(kernel, boot_cpu))
        return _low_rip(kernel, boot_cpu)
    cr3 = kernel.cr3(boot_cpu)
    if cr3 is None:
        early = on_early_tables(kernel)
        return BootStage(Stage.EARLY if early else Stage.INIT, "by its IDT: this target has no CR3")
    if cr3.pa == kernel.pa_of("early_top_pgt"):
        return BootStage(Stage.EARLY, _early_detail(kernel, cr3.pa))
    if cr3.pa == kernel.pa_of("init_top_pgt"):
        return BootStage(Stage.INIT)
    if direct_map_taken_over(kernel, boot_cpu):
        return BootStage(Stage.INIT, "CR3 holds another table: see sme cr3")
    return BootStage(Stage.EARLY, "CR3 holds another table: see sme cr3")


def direct_map_taken_over(kernel: Kernel, cpu: CpuState) -> bool:
    """Whether init_top_pgt maps the direct map: so it is from the end of init_mem_mapping() on."""
    return _in_init_top_pgt(kernel, cpu, page_offset_base(kernel, cpu))


def _in_init_top_pgt(kernel: Kernel, cpu: CpuState, va: int) -> bool:
    """Whether init_top_pgt maps ``va`` by a table that the kernel made.

    With CONFIG_PVH or CONFIG_XEN_PV it is linked with an entry for the direct map, to
    level3_ident_pgt, which x86_64_start_kernel() clears (head_64.S and head64.c, 6.1 and 6.12).
    """
    root = kernel.pa_of("init_top_pgt")
    if root is None:
        return False
    try:
        data = kernel.memory.read(root + 8 * cpu.mode.levels[0].index(va), 8)
    except ReadError:
        return False
    raw = int.from_bytes(data, "little")
    linked = kernel.symbol("level3_ident_pgt")
    if linked is not None and kernel.table_enc.address(raw) == linked[1] - START_KERNEL_MAP:
        return False
    return bool(raw & PRESENT)


def on_early_tables(kernel: Kernel) -> bool:
    """Whether the kernel is on early_top_pgt still, judged without CR3.

    So it is as long as #PF goes to early_idt_handler_array, which maps what it finds missing:
    idt_setup_early_pf() comes right after init_mem_mapping() has loaded init_top_pgt (setup_arch(),
    6.1; cpu_init_replace_early_idt(), 6.12).
    """
    if system_state_at_least(kernel, "SYSTEM_RUNNING"):
        return False
    table, handlers = kernel.pa_of("idt_table"), kernel.symbol("early_idt_handler_array")
    if table is None or handlers is None or kernel.image is None:
        return not direct_map_taken_over(kernel, kernel.cpus[0])
    gate = kernel.memory.read(table + _PAGE_FAULT * _GATE.size, _GATE.size)
    low, middle, high = _GATE.unpack(gate)
    handler = high << 32 | middle << 16 | low
    return bool(0 <= handler - kernel.image.va_of(handlers[1]) < _EARLY_HANDLERS_SIZE)


def page_offset_base(kernel: Kernel, cpu: CpuState) -> int:
    """Start of the direct map: the variable, or PAGE_OFFSET without CONFIG_RANDOMIZE_MEMORY.

    Documentation/x86/x86_64/mm.rst (6.1); 4.20 moved it up to make room for the LDT remap.

    Raises:
        TargetError: the kernel has the variable, and it cannot be read.
    """
    at = kernel.pa_of("page_offset_base")
    if at is not None:
        try:
            value = int.from_bytes(kernel.memory.read(at, 8), "little")
        except ReadError as error:
            raise TargetError(
                f"page_offset_base cannot be read ({error}): where the direct map begins is not "
                "known, nor are the tables in it; try again, or connect again"
            ) from error
        if value:
            return value
    five = cpu.mode.va_bits == 57
    today, before = (0xFF11 << 48, 0xFF10 << 48) if five else (0xFFFF8880 << 32, 0xFFFF8800 << 32)
    # The LDT remap, at the older place since then, is in the tables of tasks alone.
    older = _in_init_top_pgt(kernel, cpu, before) and not _in_init_top_pgt(kernel, cpu, today)
    return before if older else today


def efi_root(kernel: Kernel) -> int | None:
    """Physical address of efi_mm.pgd, which efi_alloc_page_tables() takes from the direct map.

    arch/x86/platform/efi/efi_64.c (6.1 and 6.12). None before that, and without EFI firmware.
    """
    found = kernel.symbol("efi_mm")
    if found is None or kernel.image is None:
        return None
    pgd = kernel.read_field(kernel.image.va_of(found[1]), "mm_struct", "pgd")
    return pgd - page_offset_base(kernel, kernel.cpus[0]) if pgd else None


def _high_half(va: int) -> bool:
    return bool(va >> 63)


def _real_mode(cpu: CpuState) -> BootStage:
    if cpu.rip == _RESET_VECTOR and cpu.cs == _RESET_CS:
        return BootStage(Stage.RESET)
    return BootStage(Stage.REAL_MODE, "firmware or the kernel's setup code")


def _without_image(kernel: Kernel, cpu: CpuState) -> BootStage:
    if not _high_half(cpu.rip) and not cpu.user_mode:
        if kernel.symbols.address("_text") is None:
            return BootStage(Stage.DECOMPRESSOR, "or startup_64: no symbols to tell")
        return BootStage(Stage.DECOMPRESSOR, "the kernel is not in place yet")
    return BootStage(Stage.RUNNING, "no symbols of this kernel to tell more")


def _low_rip(kernel: Kernel, cpu: CpuState) -> BootStage:
    if cpu.user_mode:
        return BootStage(Stage.RUNNING, "CPU 0 in user mode")
    cr3 = kernel.cr3(cpu)
    if cr3 is not None and cr3.pa == efi_root(kernel):
        return BootStage(Stage.INIT, "CPU 0 in the EFI firmware")
    if _in_workarea(kernel, cpu):
        return BootStage(Stage.IDENTITY, "sme_encrypt_execute, in its copy behind the kernel")
    return BootStage(Stage.DECOMPRESSOR)


def _in_workarea(kernel: Kernel, cpu: CpuState) -> bool:
    cr3 = kernel.cr3(cpu)
    start = kernel.pa_of("sme_workarea")
    return cr3 is not None and start is not None and start <= cr3.pa < start + WORKAREA_SIZE


#: The .init.scratch section holds sme_workarea: 2 MiB for it and 2 MiB for the tables behind it
#: (arch/x86/mm/mem_encrypt_identity.c, 6.1 and 6.12).
WORKAREA_SIZE = 4 << 20


def _identity_detail(kernel: Kernel, cpu: CpuState) -> str:
    if _in_workarea(kernel, cpu):
        return "on the temporary tables of sme_encrypt_kernel"
    mask = kernel.evidence.sme_me_mask
    if mask is None:
        return ""
    return "after sme_enable" if mask else "sme_me_mask not set"


def _early_detail(kernel: Kernel, root_pa: int) -> str:
    try:
        identity = kernel.memory.read(root_pa, 8)[0] & 1
    except ReadError:
        return ""
    return f"{'before' if identity else 'after'} reset_early_page_tables"

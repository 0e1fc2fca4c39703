# SPDX-License-Identifier: GPL-2.0-or-later
"""The small kernel of fake_kernel.py while it boots: early tables, the workarea, an AP."""

from __future__ import annotations

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import Field
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from tests.unit.fake_kernel import DIRECT, IMAGE_PA, INIT_PGD, OFFSETS, TEXT, C, Machine

EARLY_PGD, WORKAREA, TRAMPOLINE_PGD, TASK_PGD = 0x1210000, 0x1600000, 0x9C000, 0x480000
TASK, MM = 0x490000, 0x491000
HIGH, LOW = TEXT + 0x1000, IMAGE_PA + 0x1000
IDENTITY_PGD = 0x700000
#: Booting, freeing initmem, running (enum system_states, include/linux/kernel.h).
BOOTING, FREEING, RUNNING = 0, 2, 3
#: Offset of loaded_mm in cpu_tlbstate, and where the per-CPU symbols are.
_TLBSTATE, _CURRENT = 0x2000, 0x2100


class Booting(Machine):
    """Like `Machine`, on early_top_pgt and with system_state SYSTEM_BOOTING."""

    def __init__(self, *, mask: int = C, sev: int = 0) -> None:
        super().__init__(mask=mask, sev=sev)
        self.cpu = {"cr0": 0x80050033, "cr4": 0x20, "efer": 0xD01, "cs": 0x10}
        self.cr3 = EARLY_PGD | mask
        self.rip = HIGH
        symbols = self.symbols
        for name, pa in (("early_top_pgt", EARLY_PGD), ("sme_workarea", WORKAREA)):
            symbols._addresses[name] = TEXT + pa - IMAGE_PA
        symbols._addresses["_end"] = TEXT + WORKAREA + 0x400000 - IMAGE_PA
        symbols._addresses |= {"cpu_tlbstate": _TLBSTATE, "current_task": _CURRENT}
        symbols.fields |= {
            ("real_mode_header", "trampoline_pgd"): Field(24, 4),
            ("tlb_state", "loaded_mm"): Field(0, 8),
            ("mm_struct", "owner"): Field(24, 8),
            ("task_struct", "mm"): Field(8, 8),
            ("task_struct", "pid"): Field(16, 4),
            ("task_struct", "comm"): Field(32, 16),
        }
        self.state(BOOTING)
        # The kernel is mapped in both tables; the direct map is not taken over yet.
        self.put(EARLY_PGD + 8 * 511, self.get(INIT_PGD + 8 * 511))
        self._direct = self.get(self.entry(DIRECT, 1))
        self.put(self.entry(DIRECT, 1), 0)
        header = self.get(IMAGE_PA + OFFSETS["real_mode_header"]) - DIRECT
        self.put(header + 24, TRAMPOLINE_PGD)

    def state(self, value: int) -> None:
        """Set system_state."""
        self.set("system_state", value)

    def take_over(self) -> None:
        """As at the end of init_mem_mapping()."""
        self.put(self.entry(DIRECT, 1), self._direct)
        self.cr3 = INIT_PGD | self.mask

    def run_task(self, name: str = "sh") -> None:
        """User space: a task with tables of its own on CPU 0."""
        self.take_over()
        self.state(RUNNING)
        self.put(0x500000 + _TLBSTATE, DIRECT + MM)
        self.put(0x500000 + _CURRENT, DIRECT + TASK)
        self.put(MM + 16, DIRECT + TASK_PGD, DIRECT + TASK)
        self.put(TASK + 8, DIRECT + MM, 77)
        self.write(TASK + 32, name.encode() + b"\0")
        for index in (511, DIRECT >> 39 & 511):
            self.put(TASK_PGD + 8 * index, self.get(INIT_PGD + 8 * index))
        self.cr3 = TASK_PGD | self.mask

    def cpus(self) -> tuple[CpuState, ...]:
        return tuple(
            CpuState(number, rip, cr3=cr3, **self.cpu)
            for number, (rip, cr3) in enumerate(
                ((self.rip, self.cr3), *((HIGH, other) for other in self.others))
            )
        )

    def kernel(self, *, place: bool = True, **options: object) -> Kernel:
        """The kernel; with ``place`` it is known where it lies."""
        made = Kernel(self, self.symbols, self.cpus(), **options)  # type: ignore[arg-type]
        if place:
            end = self.symbols.address("_end")
            assert end is not None
            made.image = KernelImage(TEXT, TEXT, IMAGE_PA, end, "data")
        return made

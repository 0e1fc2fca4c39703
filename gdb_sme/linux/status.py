# SPDX-License-Identifier: GPL-2.0-or-later
"""The encryption state of a kernel on one screen: the answer of `sme status`."""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.cr3 import CpuState, Cr3
from gdb_sme.core.ports import Range
from gdb_sme.core.scan import how_scanned
from gdb_sme.encryption.scheme import Encryption, KernelEvidence
from gdb_sme.linux import tables
from gdb_sme.linux.cr3check import missing_image
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import BootStage, boot_stage
from gdb_sme.linux.tables import Table


@dataclass(frozen=True, slots=True)
class CpuStatus:
    """One CPU: its registers, CR3 taken apart, and the table's name.

    Without CR3, ``kernels`` is the table that the kernel's own variables name; None with it.
    """

    state: CpuState
    cr3: Cr3 | None
    table: str | None
    kernels: Table | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The encryption state.

    Attributes:
        encryption: the scheme in force.
        c_bit_source: where the C-bit's position was learned.
        evidence: the kernel's variables.
        c_bit_in_cr3: the C-bit as CR3 shows it while the kernel has no mask, None otherwise.
        stage: the boot stage.
        image: where the kernel lies, None when it is not to be found.
        no_image: why not, and what to do; empty with an image.
        phys_base: the kernel's variable, None when it cannot be read.
        early_pmd_flags: the kernel's variable, None likewise.
        x86_phys_bits: boot_cpu_data.x86_phys_bits, which the kernel reduces by the address bits
            that encryption costs; None when it cannot be read.
        cpus: every CPU.
        target: what the debugger is connected to.
        memory: how physical memory is read.
        scans: how scans of many tables look at them.
        ram: ranges of RAM.
        symbols: name of the symbol file, None without one.
        build_id: build-id of the symbol file, None without one.
    """

    encryption: Encryption
    c_bit_source: str
    evidence: KernelEvidence
    c_bit_in_cr3: int | None
    stage: BootStage
    image: KernelImage | None
    no_image: str
    phys_base: int | None
    early_pmd_flags: int | None
    x86_phys_bits: int | None
    cpus: tuple[CpuStatus, ...]
    target: str
    memory: str
    scans: str
    ram: tuple[Range, ...]
    symbols: str | None
    build_id: str | None

    @property
    def lost_address_bits(self) -> int | None:
        """Address bits that physical_mask (52 bits) has lost, None without a physical_mask."""
        mask = self.evidence.physical_mask
        return None if mask is None else 52 - mask.bit_count()


def status(kernel: Kernel, target: str, symbol_file: str | None) -> Status:
    """Collect the state; answers at every stage from reset on.

    Args:
        kernel: the kernel at this stop.
        target: what the debugger is connected to, for the screen.
        symbol_file: name of the symbol file.
    """
    return Status(
        encryption=kernel.encryption,
        c_bit_source=kernel.c_bit_source,
        evidence=kernel.evidence,
        c_bit_in_cr3=None if kernel.enc.mask else kernel.inferred_c_bit,
        stage=boot_stage(kernel),
        image=kernel.image,
        no_image="" if kernel.image else missing_image(kernel),
        phys_base=kernel.read_symbol("phys_base"),
        early_pmd_flags=kernel.read_symbol("early_pmd_flags", 8),
        x86_phys_bits=_x86_phys_bits(kernel),
        cpus=tuple(_cpu(kernel, cpu) for cpu in kernel.cpus),
        target=target,
        memory=kernel.memory.name,
        scans=how_scanned(kernel.memory),
        ram=kernel.memory.ram,
        symbols=symbol_file,
        build_id=kernel.symbols.build_id,
    )


def _cpu(kernel: Kernel, cpu: CpuState) -> CpuStatus:
    cr3 = kernel.cr3(cpu)
    if cr3 is None:
        return CpuStatus(cpu, None, None, tables.kernels_table(kernel, cpu))
    table = tables.identify(kernel, cr3.pa, cpu) if cpu.paging else None
    return CpuStatus(cpu, cr3, table.name if table else None)


def _x86_phys_bits(kernel: Kernel) -> int | None:
    found = kernel.symbol("boot_cpu_data")
    if found is None or kernel.image is None:
        return None
    va = kernel.image.va_of(found[1])
    return kernel.read_field(va, "cpuinfo_x86", "x86_phys_bits")

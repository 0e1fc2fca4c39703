# SPDX-License-Identifier: GPL-2.0-or-later
"""SME or SEV on stock QEMU: the answers of CPUID and RDMSR that an AMD machine gives.

The kernel decides in sme_enable() (arch/x86/mm/mem_encrypt_identity.c) and takes the feature over
in get_cpu_cap() and early_detect_mem_encrypt() (arch/x86/kernel/cpu/common.c and amd.c). A probe on
each ``cpuid`` and ``rdmsr`` there writes the registers and steps over the instruction. QEMU must
show its RAM a second time at ``1 << C-bit``: see docs/emulation.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import gdb

from gdb_sme.errors import EmulationError
from gdb_sme.linux.image import KernelImage
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import Stage, boot_stage
from gdb_sme.linux.symbols import find
from gdb_sme.target.code import Instruction, function_instructions
from gdb_sme.target.connection import one_line
from gdb_sme.target.entry import EntryFinder, at_identity
from gdb_sme.target.kallsyms import KernelSymbols
from gdb_sme.target.probe import Probe, register, set_register
from gdb_sme.target.qemu import QemuPhysMemory

#: AMD APM volume 3, appendix E.4.17: CPUID Fn8000_001F.
_SME, _SEV = 1 << 0, 1 << 1
#: CPUID Fn8000_0000: highest extended function, and "AuthenticAMD" in EBX, EDX, ECX.
_VENDOR = {"rbx": 0x68747541, "rdx": 0x69746E65, "rcx": 0x444D4163}
#: CPUID Fn0000_0001 EAX of the first EPYC (family 17h). ECX bit 31, "hypervisor present", is
#: clear: sme_enable() wants bare metal for SME.
_FAMILY_17H = 0x00800F12
#: MSRs: SYSCFG with MemEncryptionModeEn, SEV_STATUS with SEV_ENABLED, HWCR with SmmLock and
#: TscFreqSel (AMD APM volume 2, sections 3.2.7 and 15.34.10; PPR for family 17h).
_MSR_SYSCFG, _MSR_SEV_STATUS, _MSR_HWCR = 0xC0010010, 0xC0010131, 0xC0010015
_SYSCFG_MEM_ENCRYPT = 1 << 23
_HWCR = 1 << 0 | 1 << 24

#: Functions in which the kernel identifies a CPU. With CONFIG_PARAVIRT_XXL the instructions are in
#: the native_* functions, else they are inlined.
_IDENTIFICATION = (
    "get_cpu_cap",
    "early_init_amd",
    "early_detect_mem_encrypt",
    "native_cpuid",
    "native_read_msr",
    "native_read_msr_safe",
)
#: Functions that run once when every CPU has been identified, most exact first.
_IDENTIFIED = ("sched_init_smp", "driver_init", "mem_encrypt_init", "start_kernel")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine to be emulated.

    Attributes:
        scheme: ``"sme"`` or ``"sev"``.
        c_bit: position of the C-bit, 43 to 51.
        reduction: physical address bits that encryption costs, 0 to 63; 5 on EPYC.
    """

    scheme: str
    c_bit: int
    reduction: int = 5

    def cpuid(self, function: int) -> dict[str, int] | None:
        """The registers after CPUID ``function``, None to let the instruction run."""
        if function == 0x80000000:
            return {"rax": 0x8000001F, **_VENDOR}
        if function == 0x8000001F:
            features = _SME if self.scheme == "sme" else _SME | _SEV
            return {"rax": features, "rbx": self.c_bit | self.reduction << 6, "rcx": 0, "rdx": 0}
        return None

    def cpuid_at_sme_enable(self, function: int) -> dict[str, int] | None:
        """Like `cpuid`, and without a hypervisor for SME."""
        if function == 1 and self.scheme == "sme":
            return {"rax": _FAMILY_17H, "rbx": 0, "rcx": 0, "rdx": 0}
        return self.cpuid(function)

    def rdmsr(self, msr: int) -> dict[str, int] | None:
        """RAX and RDX after RDMSR of ``msr``, None to let the instruction run."""
        value = {
            _MSR_SYSCFG: _SYSCFG_MEM_ENCRYPT,
            _MSR_SEV_STATUS: 1 if self.scheme == "sev" else 0,
            _MSR_HWCR: _HWCR,
        }.get(msr)
        return None if value is None else {"rax": value, "rdx": 0}


class Emulation:
    """One armed emulation: from reset to the moment at which every CPU is identified.

    Args:
        machine: what to announce.
        memory: QEMU's physical memory.
        kernel: the kernel at this stop.
        symbols: the kernel's symbols.

    Raises:
        EmulationError: why it cannot work here.
    """

    def __init__(
        self, machine: Machine, memory: QemuPhysMemory, kernel: Kernel, symbols: KernelSymbols
    ) -> None:
        self.machine = machine
        self.answers = 0
        self.state = "armed: waiting for the kernel's entry"
        self._probes: list[Probe] = []
        sme_enable = _require_symbol(symbols, "sme_enable")
        self._enable_code = _questions(sme_enable[0], sme_enable[1])
        if not self._enable_code:
            raise EmulationError(f"no cpuid or rdmsr in {sme_enable[0]}: nothing to answer")
        self._identify_code = tuple(
            question
            for name in _IDENTIFICATION
            for found in [find(symbols, name)]
            if found is not None
            for question in _questions(*found)
        )
        self._done_at = next(
            (found[1] for name in _IDENTIFIED for found in [find(symbols, name)] if found), None
        )
        check_second_view(memory, machine.c_bit)
        self._finder: EntryFinder | None = None
        if boot_stage(kernel).stage >= Stage.IDENTITY:
            _require_before_sme_enable(kernel, symbols, sme_enable[1])
            assert kernel.image is not None
            self._at_entry(at_identity(memory, symbols, kernel.image))
        else:
            self._finder = EntryFinder(memory, symbols, self._at_entry)

    @property
    def active(self) -> bool:
        """Whether any breakpoint is still set."""
        return self._finder is not None or bool(self._probes)

    def cancel(self) -> None:
        """Take all breakpoints back."""
        if self._finder is not None:
            self._finder.cancel()
            self._finder = None
        for probe in self._probes:
            probe.retire()
        self._probes.clear()

    def _at_entry(self, image: KernelImage) -> None:
        self._finder = None
        self.state = "armed: answering sme_enable"
        machine = self.machine
        for each in self._enable_code:
            self._answer_at(each, image.pa_of(each.address), machine.cpuid_at_sme_enable)
        for each in self._identify_code:
            self._answer_at(each, image.va_of(each.address), machine.cpuid)
        if self._done_at is not None:
            self._probes.append(Probe(image.va_of(self._done_at), self._identified))

    def _answer_at(
        self,
        question: Instruction,
        address: int,
        cpuid: Callable[[int], dict[str, int] | None],
    ) -> None:
        source = "rax" if question.mnemonic == "cpuid" else "rcx"
        answer = cpuid if question.mnemonic == "cpuid" else self.machine.rdmsr

        def on_hit() -> None:
            registers = answer(register(source) & 0xFFFFFFFF)
            if registers is None:
                return
            for name, value in registers.items():
                set_register(name, value)
            set_register("rip", address + question.length)
            self.answers += 1

        self._probes.append(Probe(address, on_hit))

    def _identified(self) -> None:
        self.state = "done: every CPU is identified, all breakpoints are removed"
        self.cancel()


def _require_symbol(symbols: KernelSymbols, name: str) -> tuple[str, int]:
    found = find(symbols, name)
    if found is None:
        raise EmulationError(
            f"no symbol {name} in {symbols.file or 'the symbol file'}; load the vmlinux of a "
            "kernel that has CONFIG_AMD_MEM_ENCRYPT=y with: file vmlinux"
        )
    return found


def _questions(name: str, address: int) -> tuple[Instruction, ...]:
    """The cpuid and rdmsr instructions of a function."""
    try:
        code = function_instructions(address)
    except gdb.error as error:
        raise EmulationError(f"cannot read the code of {name} ({one_line(error)})") from error
    return tuple(each for each in code if each.mnemonic in ("cpuid", "rdmsr"))


def _require_before_sme_enable(kernel: Kernel, symbols: KernelSymbols, sme_enable: int) -> None:
    """Refuse when the kernel has decided already."""
    stage = boot_stage(kernel)
    image = kernel.image
    past = EmulationError(
        f"the kernel is past sme_enable already ({stage}); reset the machine, for example with "
        "`monitor system_reset`, and emulate before the kernel starts"
    )
    if image is None or stage.stage > Stage.IDENTITY:
        raise past
    rip = image.symbol_va(kernel.cpus[0].rip)
    startup = find(symbols, "startup_64")
    if rip == sme_enable or (startup is not None and rip == startup[1]):
        return
    calls = [
        each.address
        for each in (function_instructions(startup[1]) if startup else ())
        if each.mnemonic.startswith("call") and f"{sme_enable:#x}" in each.operands
    ]
    if rip is None or startup is None or not calls or not startup[1] <= rip <= calls[0]:
        raise past


def check_second_view(memory: QemuPhysMemory, c_bit: int) -> None:
    """Make sure that all RAM is seen again at ``1 << c_bit``, byte for byte.

    Raises:
        EmulationError: it is not, and how to start QEMU so that it is.
    """
    how = "see docs/emulation.md, or start QEMU with scripts/sme-debug"
    views = memory.map.second_views
    if c_bit not in views:
        others = ", ".join(str(bit) for bit in views)
        hint = f"it does at bit {others}: use --c-bit {others}" if others else how
        raise EmulationError(
            f"QEMU does not show its RAM a second time at 1 << {c_bit} ({1 << c_bit:#x}); {hint}"
        )
    for ram in memory.ram:
        covered = any(ram.start in view and ram.end <= view.end for view in views[c_bit])
        if not covered and not _is_firmware(ram.start):
            raise EmulationError(
                f"RAM at {ram.start:#x}-{ram.end:#x} is not seen again at 1 << {c_bit}; {how}"
            )
    for view in views[c_bit]:
        _compare(memory, view.end - 16, 1 << c_bit, how)


def _is_firmware(pa: int) -> bool:
    """Whether ``pa`` is in the PCI hole below 4 GiB: firmware and device memory, no guest RAM."""
    return 0xC0000000 <= pa < 1 << 32


def _compare(memory: QemuPhysMemory, pa: int, mask: int, how: str) -> None:
    token = os.urandom(16)
    before = memory.read_raw(pa, len(token))
    try:
        memory.write(pa, token)
        same = memory.read_raw(pa | mask, len(token)) == token
    finally:
        memory.write(pa, before)
    if not same:
        raise EmulationError(f"physical {pa:#x} and {pa | mask:#x} are not the same memory; {how}")

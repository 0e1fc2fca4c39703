# SPDX-License-Identifier: GPL-2.0-or-later
"""CR3 and the other control registers, decoded (AMD APM volume 2, sections 3.1 and 5.3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import LEVEL4, LEVEL5, PagingMode

CR0_PE, CR0_WP, CR0_PG = 1 << 0, 1 << 16, 1 << 31
CR4_PAE, CR4_PGE, CR4_LA57, CR4_PCIDE = 1 << 5, 1 << 7, 1 << 12, 1 << 17
CR4_SMEP, CR4_SMAP, CR4_PKE = 1 << 20, 1 << 21, 1 << 22
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11

CR0_BITS = {
    0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD",
    31: "PG",
}  # fmt: skip
CR4_BITS = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE",
    9: "OSFXSR", 10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 16: "FSGSBASE",
    17: "PCIDE", 18: "OSXSAVE", 20: "SMEP", 21: "SMAP", 22: "PKE", 23: "CET", 24: "PKS",
    28: "LAM_SUP",
}  # fmt: skip
EFER_BITS = {
    0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 13: "LMSLE", 14: "FFXSR", 15: "TCE",
    17: "MCOMMIT", 18: "INTWB", 20: "UAIE", 21: "AIBRSE",
}  # fmt: skip

_PCID_MASK = 0xFFF
_PWT, _PCD = 1 << 3, 1 << 4
_LAM_U57, _LAM_U48 = 1 << 61, 1 << 62
_NOFLUSH = 1 << 63


def bit_names(value: int, names: dict[int, str]) -> tuple[str, ...]:
    """Names of the bits set in ``value``, highest first; unknown ones as their number."""
    return tuple(
        names.get(bit, f"BIT{bit}") for bit in range(value.bit_length() - 1, -1, -1)
        if value >> bit & 1
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cr3:
    """A CR3 value taken apart.

    Attributes:
        raw: the register, 64 bits.
        enc: the encryption bit in force.
        pcide: CR4.PCIDE: bits 11:0 are a PCID; otherwise bits 3 and 4 are PWT and PCD.
    """

    raw: int
    enc: EncryptionBit
    pcide: bool = False

    @property
    def pa(self) -> int:
        """Physical address of the top table."""
        return self.enc.address(self.raw)

    @property
    def c_bit(self) -> bool:
        """Whether the encryption bit is set."""
        return self.enc.is_set(self.raw)

    @property
    def encrypted(self) -> bool:
        """Whether the top table is reached encrypted."""
        return self.enc.encrypted(self.raw)

    @property
    def pcid(self) -> int | None:
        """The process-context identifier, None when PCIDs are off."""
        return self.raw & _PCID_MASK if self.pcide else None

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of what is set outside the address: PWT, PCD, LAM_U57, LAM_U48, NOFLUSH, ENC.

        NOFLUSH (bit 63) is in values on their way into CR3 and never reads back set.
        """
        bits = [] if self.pcide else [(_PWT, "PWT"), (_PCD, "PCD")]
        bits += [(_LAM_U57, "LAM_U57"), (_LAM_U48, "LAM_U48"), (_NOFLUSH, "NOFLUSH")]
        bits.append((self.enc.mask, "ENC" if self.enc.set_is_encrypted else "SHARED"))
        return tuple(name for mask, name in bits if self.raw & mask)


@dataclass(frozen=True, slots=True)
class CpuState:
    """The registers of one CPU that decide on address translation.

    Attributes:
        index: the CPU's number, from 0, in the target's order.
        rip, cs, rflags, cr0, cr3, cr4, efer: the registers; None where the target has none to give
            (kgdb gives no control registers).
        gs_base: GS base, None likewise.
        la57: whether 5-level paging is on, where that is known without CR4; None otherwise.
    """

    index: int
    rip: int
    cs: int | None = None
    rflags: int | None = None
    cr0: int | None = None
    cr2: int | None = None
    cr3: int | None = None
    cr4: int | None = None
    efer: int | None = None
    gs_base: int | None = None
    la57: bool | None = None

    @property
    def paging(self) -> bool:
        """Whether paging is on; taken as on where CR0 is not known."""
        return self.cr0 is None or bool(self.cr0 & CR0_PG)

    @property
    def protected(self) -> bool:
        """Whether the CPU is in protected mode; taken so where CR0 is not known."""
        return self.cr0 is None or bool(self.cr0 & CR0_PE)

    @property
    def long_mode(self) -> bool:
        """Whether the CPU is in long mode; taken so where EFER is not known."""
        return self.efer is None or bool(self.efer & EFER_LMA)

    @property
    def user_mode(self) -> bool:
        """Whether the CPU executes at privilege level 3."""
        return self.protected and self.cs is not None and self.cs & 3 == 3

    @property
    def nx_enabled(self) -> bool:
        """EFER.NXE; taken as set where EFER is not known."""
        return self.efer is None or bool(self.efer & EFER_NXE)

    @property
    def write_protect(self) -> bool:
        """CR0.WP; taken as set where CR0 is not known."""
        return self.cr0 is None or bool(self.cr0 & CR0_WP)

    @property
    def mode(self) -> PagingMode:
        """4 or 5 levels, by CR4.LA57, or by `la57`; 4 where neither is known."""
        la57 = self.la57 if self.cr4 is None else self.cr4 & CR4_LA57
        return LEVEL5 if la57 else LEVEL4

    @property
    def pcide(self) -> bool:
        """CR4.PCIDE."""
        return self.cr4 is not None and bool(self.cr4 & CR4_PCIDE)

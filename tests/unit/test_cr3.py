# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit
from gdb_sme.core.cr3 import CR0_BITS, CR4_BITS, EFER_BITS, CpuState, Cr3, bit_names
from gdb_sme.core.paging import LEVEL4, LEVEL5

C47 = EncryptionBit(1 << 47)


def test_the_measured_cr3_of_early_boot() -> None:
    cr3 = Cr3(0x00008000030B6000, C47)
    assert (cr3.pa, cr3.c_bit, cr3.encrypted, cr3.pcid) == (0x30B6000, True, True, None)
    assert cr3.flags == ("ENC",)


def test_a_cr3_that_lost_its_c_bit() -> None:
    cr3 = Cr3(0x00000000030B6000, C47)
    assert (cr3.pa, cr3.c_bit, cr3.encrypted, cr3.flags) == (0x30B6000, False, False, ())


def test_low_bits_are_a_pcid_or_flags() -> None:
    user = Cr3(0x0000800002A11806, C47, pcide=True)
    assert (user.pa, user.pcid, user.flags) == (0x2A11000, 0x806, ("ENC",))
    flags = Cr3(0x1018, NO_ENCRYPTION)
    assert (flags.pcid, flags.flags) == (None, ("PWT", "PCD"))
    assert Cr3(0x1018, NO_ENCRYPTION, pcide=True).flags == ()
    assert Cr3(0x1008, NO_ENCRYPTION).flags == ("PWT",)


def test_high_bits() -> None:
    assert Cr3(0x2000000000001000, C47).flags == ("LAM_U57",)
    assert Cr3(0x4000000000001000, C47).flags == ("LAM_U48",)
    assert Cr3(0x8000800000001001, C47, pcide=True).flags == ("NOFLUSH", "ENC")
    assert Cr3(0xE000800000001000, C47).pa == 0x1000


def test_the_shared_bit() -> None:
    shared = EncryptionBit(1 << 51, set_is_encrypted=False)
    assert Cr3(0x0008000000001000, shared).flags == ("SHARED",)
    assert Cr3(0x0000000000001000, shared).encrypted


def test_bit_names() -> None:
    assert bit_names(0x80050033, CR0_BITS) == ("PG", "AM", "WP", "NE", "ET", "MP", "PE")
    assert bit_names(0x10A0, CR4_BITS) == ("LA57", "PGE", "PAE")
    assert bit_names(0xD01, EFER_BITS) == ("NXE", "LMA", "LME", "SCE")
    assert bit_names(1 << 40, EFER_BITS) == ("BIT40",)
    assert bit_names(0, CR0_BITS) == ()


def test_a_cpu_with_registers() -> None:
    cpu = CpuState(0, rip=0x401000, cs=0x33, cr0=0x80050033, cr4=0x210A0, efer=0xD01)
    assert cpu.paging
    assert cpu.protected
    assert cpu.long_mode
    assert cpu.user_mode
    assert cpu.nx_enabled
    assert cpu.write_protect
    assert cpu.pcide
    assert cpu.mode is LEVEL5


def test_a_cpu_after_reset() -> None:
    cpu = CpuState(0, rip=0xFFF0, cs=0xF003, cr0=0x60000010, cr4=0, efer=0)
    assert not cpu.paging
    assert not cpu.protected
    assert not cpu.long_mode
    assert not cpu.user_mode  # the low bits of a real-mode segment are no privilege level
    assert not cpu.nx_enabled
    assert not cpu.write_protect
    assert not cpu.pcide
    assert cpu.mode is LEVEL4


def test_a_cpu_without_control_registers_is_taken_as_running_linux() -> None:
    cpu = CpuState(0, rip=0xFFFFFFFF81000000)
    assert cpu.paging
    assert cpu.protected
    assert cpu.long_mode
    assert cpu.nx_enabled
    assert cpu.write_protect
    assert not cpu.user_mode
    assert not cpu.pcide
    assert cpu.mode is LEVEL4

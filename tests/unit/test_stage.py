# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.stage import Stage, boot_stage, direct_map_taken_over, page_offset_base
from tests.unit.boot_kernel import EARLY_PGD, IDENTITY_PGD, LOW, WORKAREA, Booting
from tests.unit.fake_kernel import DIRECT, IMAGE_PA, INIT_PGD, OFFSETS, TEXT, C


def stage(machine: Booting, *, place: bool = True) -> tuple[Stage, str]:
    found = boot_stage(machine.kernel(place=place))
    return found.stage, found.detail


def real(machine: Booting, rip: int, cs: int) -> None:
    machine.cpu.update(cr0=0x60000010, cs=cs, cr4=0, efer=0)
    machine.rip = rip


def test_reset_and_real_mode() -> None:
    machine = Booting()
    real(machine, 0xFFF0, 0xF000)
    assert stage(machine)[0] is Stage.RESET
    real(machine, 0xE05B, 0xF000)
    assert stage(machine)[0] is Stage.REAL_MODE
    real(machine, 0xFFF0, 0x9000)
    assert stage(machine)[0] is Stage.REAL_MODE


def test_protected_mode() -> None:
    machine = Booting()
    machine.cpu.update(cr0=0x11, cr4=0, efer=0)
    assert stage(machine)[0] is Stage.PROTECTED_MODE


def test_the_decompressor() -> None:
    machine = Booting()
    machine.rip, machine.cr3 = 0x100200, IDENTITY_PGD
    assert stage(machine) == (Stage.DECOMPRESSOR, "")
    machine.write(0x1202000, b"\0" * 16)  # linux_banner: not there yet
    assert stage(machine, place=False) == (Stage.DECOMPRESSOR, "the kernel is not in place yet")
    del machine.symbols._addresses["_text"]
    assert stage(machine, place=False) == (
        Stage.DECOMPRESSOR,
        "or startup_64: no symbols to tell",
    )


def test_identity_addresses() -> None:
    machine = Booting(mask=0)
    machine.rip, machine.cr3 = LOW, IDENTITY_PGD
    assert stage(machine) == (Stage.IDENTITY, "sme_me_mask not set")
    machine = Booting()
    machine.rip, machine.cr3 = LOW, IDENTITY_PGD
    assert stage(machine) == (Stage.IDENTITY, "after sme_enable")
    machine.cr3 = WORKAREA + 0x202000
    assert stage(machine) == (Stage.IDENTITY, "on the temporary tables of sme_encrypt_kernel")
    machine.rip = WORKAREA + 0x401010  # behind the image
    assert stage(machine) == (
        Stage.IDENTITY,
        "sme_encrypt_execute, in its copy behind the kernel",
    )


def test_the_firmware_at_its_physical_address_is_not_early_boot() -> None:
    machine = Booting()
    machine.take_over()
    efi = WORKAREA + 0x202000
    machine.put(IMAGE_PA + OFFSETS["efi_mm"] + 16, DIRECT + efi)
    machine.rip, machine.cr3 = 0x9_0000, efi | C
    assert stage(machine) == (Stage.INIT, "CPU 0 in the EFI firmware")


def test_early_and_init() -> None:
    machine = Booting()
    machine.put(EARLY_PGD, 0x1234063)
    assert stage(machine) == (Stage.EARLY, "before reset_early_page_tables")
    machine.put(EARLY_PGD, 0)
    assert stage(machine) == (Stage.EARLY, "after reset_early_page_tables")
    machine.cr3 = 0x5000 | C
    assert stage(machine) == (Stage.EARLY, "CR3 holds another table: see sme cr3")
    machine.take_over()
    assert stage(machine) == (Stage.INIT, "")
    machine.cr3 = 0x5000 | C
    assert stage(machine) == (Stage.INIT, "CR3 holds another table: see sme cr3")


def test_running() -> None:
    machine = Booting()
    machine.run_task()
    assert stage(machine) == (Stage.RUNNING, "")
    machine.rip, machine.cpu["cs"] = 0x401000, 0x33
    assert stage(machine) == (Stage.RUNNING, "CPU 0 in user mode")
    assert stage(machine)[0] > Stage.INIT


def test_running_without_symbols() -> None:
    machine = Booting()
    machine.run_task()
    del machine.symbols._addresses["_text"]
    assert stage(machine, place=False)[0] is Stage.RUNNING


@pytest.mark.parametrize(
    ("cr4", "since", "before"),
    [(0x20, 0xFFFF8880 << 32, 0xFFFF8800 << 32), (0x1020, 0xFF11 << 48, 0xFF10 << 48)],
)
def test_page_offset_base_without_the_variable(cr4: int, since: int, before: int) -> None:
    machine = Booting()
    machine.cpu["cr4"] = cr4
    kernel: Kernel = machine.kernel()
    assert page_offset_base(kernel, kernel.cpus[0]) == DIRECT
    machine.symbols.remove("page_offset_base")
    kernel = machine.kernel()
    cpu = kernel.cpus[0]
    level = cpu.mode.levels[0]
    assert page_offset_base(kernel, cpu) == since
    assert not direct_map_taken_over(kernel, cpu)
    machine.put(INIT_PGD + 8 * level.index(before), 0x1234063 | C)
    assert page_offset_base(kernel, cpu) == before
    assert direct_map_taken_over(kernel, cpu)
    machine.put(INIT_PGD + 8 * level.index(since), 0x1234063 | C)
    assert page_offset_base(kernel, cpu) == since
    assert direct_map_taken_over(kernel, cpu)


def test_the_entry_that_init_top_pgt_is_linked_with_is_no_direct_map() -> None:
    machine = Booting()
    machine.symbols._addresses["level3_ident_pgt"] = TEXT + 0x2E000
    machine.put(machine.entry(DIRECT, 1), 0x102E063)
    kernel = machine.kernel()
    assert not direct_map_taken_over(kernel, kernel.cpus[0])
    machine.put(machine.entry(DIRECT, 1), 0x102F063)
    assert direct_map_taken_over(kernel, kernel.cpus[0])


def test_str() -> None:
    machine = Booting()
    assert str(boot_stage(machine.kernel())) == (
        "early boot, on early_top_pgt (after reset_early_page_tables)"
    )
    machine.take_over()
    assert str(boot_stage(machine.kernel())) == "on init_top_pgt, before user space"
    assert machine.cr3 == INIT_PGD | C

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

from gdb_sme.linux.status import Status, status
from gdb_sme.render import status as view
from tests.unit.boot_kernel import EARLY_PGD, Booting
from tests.unit.fake_kernel import C


def made(machine: Booting, *, place: bool = True) -> Status:
    return status(machine.kernel(place=place), "a machine", "vmlinux")


def lines(found: Status) -> list[str]:
    return str(view.text(found)).split("\n")


def row(found: Status, label: str) -> str:
    return next(line[len(label) :].strip() for line in lines(found) if line.startswith(label))


def test_the_screen() -> None:
    assert lines(made(Booting())) == [
        "AMD SME          active  C-bit 47, mask 0x0000800000000000  (the kernel's variables)",
        "stage            early boot, on early_top_pgt (after reset_early_page_tables)",
        "paging           4 levels",
        "kernel           _text at 0xffffffff81000000 = 0x01000000"
        "  (at its symbols' address; found by data)",
        "sme_me_mask      0x0000800000000000",
        "sev_status       0x0000000000000000",
        "cc_mask          0x0000800000000000",
        "physical_mask    0x000f7fffffffffff  lost: bit 47",
        "early_pmd_flags  0x80008000000000e3  PAGE_KERNEL_LARGE & ~_PAGE_GLOBAL",
        "CPU 0            CR3 0x0000800001210000  C  early_top_pgt",
        "                 CR0 PG AM WP NE ET MP PE, CR4 PAE, EFER NXE LMA LME SCE",
        "target           a machine",
        "memory           data; RAM 32 MiB",
        "scans            one table after the other: memory is not mapped",
        "symbols          vmlinux, build-id 00  match the guest",
    ]


def test_no_encryption() -> None:
    assert row(made(Booting(mask=0)), "encryption") == "none  sme_me_mask is 0"
    machine = Booting(mask=0)
    for name in ("sme_me_mask", "cc_mask"):
        machine.symbols.remove(name)
    assert row(made(machine), "encryption") == (
        "none  no sme_me_mask: a kernel without CONFIG_AMD_MEM_ENCRYPT"
    )
    machine.cpu.update(cr0=0x10, cr4=0, efer=0)
    found = made(machine, place=False)
    if found.image is None:
        assert row(found, "encryption") == "unknown  the kernel cannot be asked"


def test_a_bit_in_cr3_that_the_kernel_does_not_know_stands_out() -> None:
    machine = Booting(mask=0)
    machine.cr3 = EARLY_PGD | C
    found = made(machine)
    assert row(found, "encryption") == (
        "sme_me_mask is 0 but CR3 carries bit 47  to decode with it: set sme c-bit 47"
    )
    assert view.text(found).lines[0][-2][0] == "Generic.Error"


def test_early_pmd_flags_without_the_bit() -> None:
    machine = Booting()
    machine.set("early_pmd_flags", 0x80000000000000E3)
    assert row(made(machine), "early_pmd_flags").endswith("  no ENC yet")
    machine.take_over()
    found = made(machine)
    assert row(found, "early_pmd_flags").endswith("  no ENC")
    spans = [span for line in view.text(found).lines for span in line]
    assert ("Generic.Error", "  no ENC") in spans


def test_what_is_not_known_is_said() -> None:
    found = made(Booting())
    bare = replace(found, symbols=None, build_id=None, ram=(), image=None, no_image="no symbols")
    assert row(bare, "symbols") == "none; load them with: file vmlinux"
    assert row(bare, "memory") == "data; RAM unknown"
    assert row(bare, "kernel") == "no symbols"
    assert row(replace(bare, symbols="vmlinux"), "symbols") == "vmlinux, no build-id"


def test_paging_off_and_unknown_tables() -> None:
    machine = Booting()
    machine.cr3 = 0x5000 | C
    assert row(made(machine), "CPU 0").endswith("no table that is known")
    machine.cpu.update(cr0=0x11, cr4=0, efer=0)
    found = made(machine)
    assert row(found, "CPU 0").endswith("not in use: paging is off")
    assert row(found, "paging") == "not in long mode"
    cpu = found.cpus[0]
    none = replace(
        found, cpus=(replace(cpu, state=replace(cpu.state, cr0=None, cr4=None, efer=None)),)
    )
    assert "no control registers from this target" in "\n".join(lines(none))


def test_sev_and_moved_kernels() -> None:
    found = made(Booting(sev=1))
    assert row(found, "AMD SEV").startswith("active  C-bit 47")
    assert found.image is not None
    moved = replace(found, image=replace(found.image, va=found.image.va + 0x1600000))
    assert "0x1600000 above its symbols' address" in row(moved, "kernel")

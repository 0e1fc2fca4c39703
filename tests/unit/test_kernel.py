# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest

from gdb_sme.errors import AddressError, ReadError, SymbolError, UsageError
from gdb_sme.linux import address, layout, symbols, tables, translate
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.tables import Kind
from tests.fakes import FakePhys, FakeSymbols
from tests.unit.boot_kernel import (
    EARLY_PGD,
    IDENTITY_PGD,
    LOW,
    RUNNING,
    TASK_PGD,
    TRAMPOLINE_PGD,
    WORKAREA,
    Booting,
)
from tests.unit.fake_kernel import DIRECT, IMAGE_PA, INIT_PGD, OFFSETS, TEXT, C


def test_encryption_from_the_kernel() -> None:
    kernel = Booting().kernel()
    assert (kernel.encryption.scheme, kernel.enc.position) == ("sme", 47)
    assert kernel.c_bit_source == "the kernel's variables"
    assert Booting(sev=1).kernel().encryption.scheme == "sev"
    none = Booting(mask=0).kernel()
    assert (none.encryption.scheme, none.enc.mask) == ("none", 0)


def test_encryption_by_hand_wins() -> None:
    kernel = Booting().kernel(c_bit=51)
    assert (kernel.enc.position, kernel.c_bit_source) == (51, "set sme c-bit")


def test_encryption_inferred_from_cr3() -> None:
    machine = Booting()
    kernel = Kernel(machine, FakeSymbols({}), machine.cpus())
    assert (kernel.enc.position, kernel.c_bit_source) == (47, "inferred from CR3")
    machine.cr3 = EARLY_PGD
    kernel = Kernel(machine, FakeSymbols({}), machine.cpus())
    assert (kernel.enc.mask, kernel.c_bit_source) == (0, "nothing to learn from")


def test_a_bit_in_cr3_that_the_kernel_does_not_know_is_taken_out_all_the_same() -> None:
    machine = Booting(mask=0)
    machine.cr3 = EARLY_PGD | C
    kernel = machine.kernel()
    assert (kernel.enc.mask, kernel.inferred_c_bit, kernel.table_enc.position) == (0, 47, 47)
    cr3 = kernel.cr3(kernel.cpus[0])
    assert cr3 is not None
    assert cr3.pa == EARLY_PGD


def test_the_numbers_of_cc_vendor_differ_but_not_its_enumerators() -> None:
    machine = Booting()
    machine.symbols._addresses["cc_vendor"] = TEXT + 0x200078
    machine.put(IMAGE_PA + 0x200078, 2)
    assert machine.kernel().evidence.cc_vendor is None
    machine.symbols.enumerators = {"CC_VENDOR_AMD": 1, "CC_VENDOR_INTEL": 2}  # 6.12
    assert machine.kernel().evidence.cc_vendor == "INTEL"
    machine.symbols.enumerators = {"CC_VENDOR_HYPERV": 2, "CC_VENDOR_INTEL": 3}  # 6.1
    assert machine.kernel().evidence.cc_vendor == "HYPERV"


def test_read_virtual() -> None:
    machine = Booting()
    machine.take_over()
    machine.write(0x801000 - 4, b"abcdefgh")
    kernel = machine.kernel()
    assert kernel.read_virtual(TEXT + OFFSETS["linux_banner"], 5) == b"Linux"
    assert kernel.read_virtual(DIRECT + 0x801000 - 4, 8) == b"abcdefgh"
    with pytest.raises(ReadError, match="not mapped"):
        kernel.read_virtual(0xFFFFEA0000000000, 8)
    machine.symbols.remove("init_top_pgt")
    with pytest.raises((SymbolError, ReadError)):
        machine.kernel().read_virtual(0xFFFFEA0000000000, 8)


def test_missing_variables_are_none() -> None:
    kernel = Booting().kernel()
    assert kernel.read_symbol("no_such_variable") is None
    assert kernel.pa_of("no_such_variable") is None
    assert kernel.read_field(DIRECT, "no_such_struct", "x") is None


def test_aliases() -> None:
    known = FakeSymbols({"init_level4_pgt": 1, "__pi_sme_enable": 2, "jiffies": 3})
    assert symbols.find(known, "init_top_pgt") == ("init_level4_pgt", 1)
    assert symbols.find(known, "sme_enable") == ("__pi_sme_enable", 2)
    assert symbols.find(known, "jiffies") == ("jiffies", 3)
    assert symbols.find(known, "early_top_pgt") is None
    assert symbols.canonical("early_level4_pgt") == "early_top_pgt"
    assert symbols.canonical("jiffies") == "jiffies"


@pytest.mark.parametrize(
    ("pa", "rip", "kind", "name"),
    [
        (EARLY_PGD, None, Kind.EARLY, "early_top_pgt"),
        (INIT_PGD, None, Kind.INIT, "init_top_pgt"),
        (WORKAREA + 0x202000, LOW, Kind.WORKAREA, "sme_workarea"),
        (IDENTITY_PGD, LOW, Kind.IDENTITY, "identity map"),
        (TRAMPOLINE_PGD, LOW, Kind.TRAMPOLINE, "trampoline_pgd"),
        (TRAMPOLINE_PGD, None, Kind.TRAMPOLINE, "trampoline_pgd"),
    ],
)
def test_identify(pa: int, rip: int | None, kind: Kind, name: str) -> None:
    machine = Booting()
    machine.rip = rip or machine.rip
    if kind is Kind.TRAMPOLINE:
        machine.take_over()
    kernel = machine.kernel()
    table = tables.identify(kernel, pa, kernel.cpus[0])
    assert table is not None
    assert (table.kind, table.name) == (kind, name)


@pytest.mark.parametrize("rip", [None, LOW, 0x9_0000])
def test_the_tables_of_efi_may_lie_where_the_workarea_was(rip: int | None) -> None:
    machine = Booting()
    machine.take_over()
    machine.rip = rip or machine.rip
    efi, other = WORKAREA + 0x202000, WORKAREA + 0x204000
    machine.put(IMAGE_PA + OFFSETS["efi_mm"] + 16, DIRECT + efi)
    kernel = machine.kernel()
    table = tables.identify(kernel, efi, kernel.cpus[0])
    assert table is not None
    assert (table.kind, table.name) == (Kind.EFI, "efi_mm.pgd")
    if rip is None:  # the kernel is at its own addresses: that memory may be anybody's now
        assert tables.identify(kernel, other, kernel.cpus[0]) is None


def test_identify_after_boot() -> None:
    machine = Booting()
    machine.run_task("a-very-long-nam")
    kernel = machine.kernel()
    cpu = kernel.cpus[0]
    own = tables.identify(kernel, TASK_PGD, cpu)
    assert own is not None
    assert (own.kind, own.detail) == (Kind.MM, "task 77 (a-very-long-nam)")
    assert tables.identify(kernel, EARLY_PGD, cpu) is None
    assert tables.identify(kernel, WORKAREA, cpu) is None
    assert tables.identify(kernel, 0x5000, cpu) is None


@pytest.mark.parametrize(
    ("va", "five", "name"),
    [
        (0x1000, False, "user space"),
        (0x00007FFFFFFFFFFF, False, "user space"),
        (0x00FFFFFFFFFFFFFF, True, "user space"),
        (0xFFFF880000000000, False, "LDT remap"),
        (DIRECT, False, "direct map"),
        (0xFFFFC90000000000, False, "vmalloc"),
        (0xFFFFEA0000000000, False, "vmemmap"),
        (0xFFFFFE0000001000, False, "cpu_entry_area"),
        (TEXT, False, "kernel image"),
        (0xFFFFFFFFA0000000, False, "modules"),
        (0xFFFFFFFFFF5FD000, False, "fixmap"),
        (0xFFFFFFFFFF600000, False, "vsyscall"),
        (0xFFFF800000000000, False, None),
        (0xFFA0000000001000, True, "vmalloc"),
        (0xFFD1000000000000, True, "vmalloc"),
        (0xFFD4000000001000, True, "vmemmap"),
    ],
)
def test_regions(va: int, five: bool, name: str | None) -> None:
    machine = Booting()
    if five:
        machine.cpu["cr4"] = 0x1020
        machine.symbols.remove("page_offset_base")
    kernel = machine.kernel()
    assert layout.region_of(kernel, kernel.cpus[0], va) == name


def test_address_arithmetic() -> None:
    machine = Booting()
    kernel = machine.kernel()
    cpu = kernel.cpus[0]
    assert address.pa(kernel, cpu, TEXT + 5) == IMAGE_PA + 5
    assert address.pa(kernel, cpu, DIRECT + 0x1234) == 0x1234
    assert address.sme_va(kernel, cpu, 0x1234 | C) == DIRECT + 0x1234
    assert kernel.sme_pa(0x1234) == 0x1234 | C
    assert address.pa_nodebug(kernel, cpu, 0) == -DIRECT % (1 << 64)
    for outside in (0, 0x7FFFFFFFF000, 0xFFFFC90000000000 + (1 << 46), 0xFFFFFFFFC0000000):
        with pytest.raises(AddressError, match="neither in the kernel image nor in the direct map"):
            address.pa(kernel, cpu, outside)
    nowhere = Kernel(FakePhys({0: bytes(4096)}), FakeSymbols({}), machine.cpus())
    with pytest.raises(SymbolError, match="no kernel symbols"):
        address.pa(nowhere, cpu, TEXT)


def test_no_user_address_has_a_pa_wherever_the_direct_map_is() -> None:
    machine = Booting()
    machine.set("page_offset_base", 0xFFFFC80000000000)
    kernel = machine.kernel()
    with pytest.raises(AddressError):
        address.pa(kernel, kernel.cpus[0], 0x1000)


def test_translate() -> None:
    machine = Booting()
    machine.run_task()
    kernel = machine.kernel()
    cpu = kernel.cpus[0]
    root = translate.root_of_cpu(kernel, cpu)
    assert (root.pa, root.c_bit, root.table, root.source) == (
        TASK_PGD, True, "loaded_mm->pgd", "CR3 of CPU 0",
    )  # fmt: skip
    found = translate.translate(kernel, TEXT + OFFSETS["linux_banner"], cpu, root)
    assert (found.symbol, found.region, found.memory_type) == (
        "linux_banner", "kernel image", "write-back",
    )  # fmt: skip
    assert found.nonpresent is None
    plain = translate.translate(kernel, TEXT + OFFSETS["__start_bss_decrypted"], cpu, root)
    assert plain.walk.mapping is not None
    assert not plain.walk.mapping.encrypted
    assert plain.note == ".bss..decrypted: by design"
    hole = translate.translate(kernel, 0x10000000, cpu, root)
    assert (hole.symbol, hole.region) == (None, "user space")
    assert hole.nonpresent is not None
    assert hole.nonpresent.kind == "none"


def test_what_was_linked_at_an_address_that_kaslr_has_left() -> None:
    machine = Booting()
    kernel = machine.kernel()
    cpu, banner = kernel.cpus[0], TEXT + OFFSETS["linux_banner"]
    root = translate.root_of_cpu(kernel, cpu)
    assert translate.translate(kernel, banner, cpu, root).moved is None
    assert kernel.image is not None
    kernel.image = replace(kernel.image, va=TEXT + 0x10000000)
    found = translate.translate(kernel, banner, cpu, root)
    assert found.moved == ("linux_banner", banner + 0x10000000)
    assert translate.translate(kernel, banner + 0x10000000, cpu, root).moved is None
    # By a short way: what the address is of now is as good a reading.
    kernel.image = replace(kernel.image, va=TEXT + 0x200000)
    assert translate.translate(kernel, banner, cpu, root).moved is None


def test_roots() -> None:
    machine = Booting()
    kernel = machine.kernel()
    cpu = kernel.cpus[0]
    early = translate.root_of_symbol(kernel, "early_level4_pgt")
    assert early is not None
    assert (early.pa, early.raw, early.table) == (EARLY_PGD, EARLY_PGD | C, "early_top_pgt")
    assert translate.root_of_symbol(kernel, "nowhere") is None
    by_value = translate.root_of_value(kernel, INIT_PGD | C | 0x18, cpu)
    assert (by_value.pa, by_value.c_bit, by_value.table) == (INIT_PGD, True, "init_top_pgt")
    machine.symbols.sizes["mm_struct"] = machine.symbols.object_sizes["efi_mm"] = 1024
    with pytest.raises(SymbolError, match=r"efi_mm\.pgd is 0x0: efi_mm has no page tables"):
        translate.root_of_symbol(kernel, "efi_mm")
    machine.put(IMAGE_PA + OFFSETS["efi_mm"] + 16, TEXT + INIT_PGD - IMAGE_PA)
    efi = translate.root_of_symbol(kernel, "efi_mm")
    assert efi is not None
    assert (efi.pa, efi.raw, efi.table) == (INIT_PGD, INIT_PGD | C, "efi_mm.pgd")
    del machine.symbols.object_sizes["efi_mm"]
    with pytest.raises(UsageError, match=r"efi_mm at 0x[0-9a-f]+ is no page table: not aligned"):
        translate.root_of_symbol(kernel, "efi_mm")
    machine.state(RUNNING)
    with pytest.raises(SymbolError, match="early_top_pgt was freed after boot"):
        translate.root_of_symbol(machine.kernel(), "early_top_pgt")

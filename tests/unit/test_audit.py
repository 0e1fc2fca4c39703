# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule passes on a sound kernel and names the place of its fault on a broken one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gdb_sme.core import entry as bits
from gdb_sme.errors import TargetError
from gdb_sme.linux.audit import RULES, audit
from gdb_sme.linux.audit.model import Audit, Result, Verdict
from gdb_sme.linux.exceptions import unencrypted
from tests.unit.fake_kernel import (
    CODE,
    DATA,
    DEVICE,
    DIRECT,
    FIRMWARE,
    FIXMAP,
    HEAP,
    IMAGE_PA,
    INIT_PGD,
    LARGE,
    OFFSETS,
    PAGE,
    PERCPU,
    PERCPU_PA,
    POOL,
    SWIOTLB,
    TEXT,
    TRAMPOLINE,
    USER,
    VMALLOC,
    C,
    Machine,
)

BSS = TEXT + OFFSETS["__start_bss_decrypted"]


def judge(machine: Machine) -> Audit:
    kernel = machine.kernel()
    return audit(kernel, kernel.cpus[0])[0]


def found(result: Audit, name: str) -> Result:
    return next(each for each in result.results if each.rule.name == name)


def failed(result: Audit) -> set[str]:
    return {each.rule.name for each in result.failed}


@pytest.mark.parametrize("sev", [0, 1])
def test_a_sound_kernel_passes(sev: int) -> None:
    result = judge(Machine(sev=sev))
    assert not failed(result)
    skipped = {
        "kernel-half-shared",
        "boot-data-unmapped",
        "percpu-decrypted",
        "ghcb-decrypted",
        "efi-runtime",
    }
    not_applicable = {
        r.rule.name for r in result.results if r.outcome.verdict is Verdict.NOT_APPLICABLE
    }
    assert not_applicable == skipped | ({"firmware-tables"} if sev else set())
    assert result.c_bit == 47
    assert result.count(Verdict.PASS) == len(RULES) - len(not_applicable)


def test_names_are_unique_and_every_rule_says_why_and_where() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.what
        assert rule.why
        assert rule.source
        assert rule.name == rule.name.lower()


def _direct_map(machine: Machine) -> None:
    machine.split(DIRECT + 0xA00000, 0xA00000)
    machine.flip(DIRECT + 0xA05000, C)


def _upper_table(machine: Machine) -> None:
    machine.flip(DIRECT + 0xA00000, C, 2)


def _table_page(machine: Machine) -> None:
    # The pages of the tables lie here, and nothing else is looked at without the C-bit.
    machine.flip(DIRECT + 0xC00000, C, 3)


def _other_root(machine: Machine) -> None:
    other = 0x1302000
    machine.write(other, machine.read(INIT_PGD, 4096))
    machine.put(other + 8 * 273, machine.get(other + 8 * 273) & ~C)
    machine.cr3 = other | C
    machine.symbols.fields["tlb_state", "loaded_mm"] = machine.symbols.fields["list_head", "next"]
    machine.symbols._addresses["cpu_tlbstate"] = 0x1200
    machine.put(PERCPU_PA + 0x1200, DIRECT + HEAP + 0x5000)
    machine.put(HEAP + 0x5000 + 16, DIRECT + other)


def _reserved(machine: Machine) -> None:
    machine.flip(DIRECT + 0xA00000, 1 << 13, 3)


def _wx(machine: Machine) -> None:
    machine.flip(VMALLOC + 0x9000, bits.NX)


def _stray(machine: Machine) -> None:
    machine.map(VMALLOC + 0x40000, DEVICE + 0x1000, PAGE, DATA | bits.PCD, enc=False)


#: Rule: how to break it, and the first virtual address of the place that it must name.
FAULTS: dict[str, tuple[Callable[[Machine], None], int | None]] = {
    "cr3": (lambda m: setattr(m, "cr3", INIT_PGD), None),
    "masks-agree": (lambda m: m.set("__supported_pte_mask", ~C & ((1 << 64) - 1)), None),
    "early-pmd-flags": (lambda m: m.set("early_pmd_flags", 0xE3), None),
    "protection-map": (lambda m: m.put(IMAGE_PA + OFFSETS["protection_map"] + 24, 0x25), None),
    "tables-well-formed": (_reserved, DIRECT + 0xA00000),
    "table-entries-encrypted": (_upper_table, DIRECT),
    "table-pages-encrypted": (_table_page, DIRECT + 0xC01000),
    "kernel-half-shared": (_other_root, DIRECT),
    "kernel-text-encrypted": (lambda m: m.flip(TEXT, C, 3), TEXT),
    "kernel-data-encrypted": (lambda m: m.flip(TEXT + 0x300000, C), TEXT + 0x300000),
    "bss-decrypted": (lambda m: m.flip(BSS + PAGE, C), BSS + PAGE),
    "direct-map-encrypted": (_direct_map, DIRECT + 0xA05000),
    "kernel-memory-encrypted": (lambda m: m.flip(VMALLOC + 0xA000, C), VMALLOC + 0xA000),
    "lower-half-encrypted": (lambda m: m.flip(USER + 0x2000, C), USER + 0x2000),
    "views-agree": (lambda m: m.flip(VMALLOC + 0xA000, C), VMALLOC + 0xA000),
    "no-writable-code": (_wx, VMALLOC + 0x9000),
    "swiotlb-decrypted": (lambda m: m.flip(DIRECT + SWIOTLB, C, 3), DIRECT + SWIOTLB),
    "dma-pools-decrypted": (lambda m: m.flip(DIRECT + POOL + PAGE, C), DIRECT + POOL + PAGE),
    "trampoline": (lambda m: m.flip(DIRECT + TRAMPOLINE, C), DIRECT + TRAMPOLINE),
    "mmio-decrypted": (lambda m: m.flip(FIXMAP, C), FIXMAP),
    "ioremaps-known": (_stray, VMALLOC + 0x40000),
    "firmware-tables": (lambda m: m.flip(VMALLOC + 0x4000, C), VMALLOC + 0x4000),
    "vga-decrypted": (lambda m: m.flip(DIRECT + 0xB9000, C), DIRECT + 0xB9000),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_rule_fails_at_its_fault_and_names_the_place(name: str) -> None:
    machine = Machine()
    fault, va = FAULTS[name]
    fault(machine)
    result = judge(machine)
    assert name in failed(result)
    place = found(result, name).outcome.places[0]
    assert place.va == va
    if va is not None:
        assert place.size
        assert place.entry_pa is not None


def test_of_two_roots_that_differ_init_top_pgt_is_right() -> None:
    machine = Machine()
    _other_root(machine)
    (place,) = found(judge(machine), "kernel-half-shared").outcome.places
    assert place.entry_pa == 0x1302000 + 8 * 273
    assert place.size == 1 << 39
    assert "in loaded_mm->pgd" in place.detail


def test_every_rule_is_broken_by_some_test() -> None:
    elsewhere = {"boot-data-unmapped", "percpu-decrypted", "ghcb-decrypted", "efi-runtime"}
    assert {rule.name for rule in RULES} == set(FAULTS) | elsewhere


def test_a_place_has_page_size_level_entry_and_raw_value() -> None:
    machine = Machine()
    machine.flip(DIRECT + 0xA00000, C, 3)
    (place,) = found(judge(machine), "direct-map-encrypted").outcome.places
    entry = machine.entry(DIRECT + 0xA00000, 3)
    assert (place.page_size, place.level, place.entry_pa) == (LARGE, "pmd", entry)
    assert place.raw == machine.get(entry)
    assert (place.pa, place.size) == (0xA00000, LARGE)


def test_a_kernel_without_encryption_has_only_the_rules_that_do_not_need_it() -> None:
    result = judge(Machine(mask=0))
    assert not failed(result)
    reasons = {
        r.rule.name: r.outcome.text
        for r in result.results
        if r.outcome.verdict is Verdict.NOT_APPLICABLE
    }
    assert reasons["direct-map-encrypted"] == "no memory encryption is active"
    assert found(result, "cr3").outcome.verdict is Verdict.PASS
    assert found(result, "no-writable-code").outcome.verdict is Verdict.PASS


def test_without_types_unencrypted_places_are_not_called_faults() -> None:
    machine = Machine()
    machine.symbols.fields.clear()
    result = judge(machine)
    outcome = found(result, "direct-map-encrypted").outcome
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert "load the kernel's vmlinux" in outcome.text


def test_before_running_what_comes_late_in_boot_is_not_asked_for() -> None:
    machine = Machine()
    machine.set("system_state", 0)
    result = judge(machine)
    for name in ("swiotlb-decrypted", "trampoline", "no-writable-code"):
        assert found(result, name).outcome.text.startswith("before ")
    # Not given back yet: all of .bss..decrypted may be unencrypted.
    machine.flip(BSS + 2 * PAGE, C)
    assert found(judge(machine), "bss-decrypted").outcome.verdict is Verdict.PASS
    machine.set("system_state", 3)
    assert "bss-decrypted" in failed(judge(machine))


def _early(machine: Machine) -> None:
    """The machine on early_top_pgt: the same tables, but for the direct map."""
    machine.symbols._addresses["early_top_pgt"] = TEXT + 0x380000
    early = IMAGE_PA + 0x380000
    data = bytearray(machine.read(INIT_PGD, 4096))
    data[8 * 273 : 8 * 274] = bytes(8)
    data[8 * 402 : 8 * 403] = bytes(8)  # vmalloc
    machine.write(early, bytes(data))
    machine.write(INIT_PGD, bytes(4096))
    machine.set("system_state", 0)
    machine.cr3 = early | C


def test_in_early_boot_the_direct_map_is_not_there_yet() -> None:
    machine = Machine()
    _early(machine)
    result = judge(machine)
    assert not failed(result)
    assert found(result, "direct-map-encrypted").outcome.verdict is Verdict.NOT_APPLICABLE
    assert found(result, "boot-data-unmapped").outcome.verdict is Verdict.PASS


def test_boot_data_left_mapped_is_a_fault_unless_it_is_being_copied() -> None:
    machine = Machine()
    _early(machine)
    machine.map(DIRECT, 0, LARGE, CODE, page=LARGE, enc=False, root=IMAGE_PA + 0x380000)
    place = found(judge(machine), "boot-data-unmapped").outcome.places[0]
    assert (place.va, place.size) == (DIRECT, LARGE)
    machine.symbols._addresses["copy_bootdata"] = machine.rip - 8
    assert "copy_bootdata is copying it" in found(judge(machine), "boot-data-unmapped").outcome.text


def test_early_pmd_flags_is_not_asked_for_before_a_fault_can_be_served() -> None:
    machine = Machine()
    _early(machine)
    machine.set("early_pmd_flags", 0xE3)
    machine.set("protection_map", *[0x25] * 16)
    result = judge(machine)
    assert "before sme_early_init()" in found(result, "early-pmd-flags").outcome.text
    assert "before sme_early_init()" in found(result, "protection-map").outcome.text
    machine.set("idt_table", 0x1234)
    assert "early-pmd-flags" in failed(judge(machine))


def test_per_cpu_variables_of_a_kvm_guest_must_be_shared() -> None:
    machine = Machine(sev=1)
    machine.others = (INIT_PGD | C,)
    machine.set("x86_hyper_type", 3)
    machine.split(DIRECT + 0x400000, 0x400000)
    first, second = (DIRECT + PERCPU_PA + offset + PERCPU["apf_reason"] for offset in (0, 0x4000))
    machine.flip(first, C)
    (place,) = found(judge(machine), "percpu-decrypted").outcome.places
    assert place.va == second
    machine.flip(second, C)
    assert not failed(judge(machine))


def test_per_cpu_variables_are_shared_by_the_time_the_scheduler_runs() -> None:
    machine = Machine(sev=1)
    machine.set("x86_hyper_type", 3)
    machine.set("system_state", 0)
    outcome = found(judge(machine), "percpu-decrypted").outcome
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert "smp_prepare_boot_cpu()" in outcome.text


def test_the_blocks_of_a_sev_es_guest_must_be_shared() -> None:
    machine = Machine(sev=3)
    at = PERCPU_PA + PERCPU["runtime_data"]
    machine.put(at, DIRECT + HEAP + 0x10000)
    machine.split(DIRECT + 0x400000, 0x400000)
    assert found(judge(machine), "ghcb-decrypted").outcome.verdict is Verdict.NOT_APPLICABLE
    machine.set("initial_vc_handler", TEXT + OFFSETS["kernel_exc_vmm_communication"])
    (place,) = found(judge(machine), "ghcb-decrypted").outcome.places
    assert place.va == DIRECT + HEAP + 0x10000
    machine.flip(DIRECT + HEAP + 0x10000, C)
    assert not failed(judge(machine))


@pytest.mark.parametrize(("sev", "enc"), [(0, True), (1, False)])
def test_efi_runtime_memory_follows_the_scheme(sev: int, enc: bool) -> None:
    machine = Machine(sev=sev)
    root, window = 0x1304000, 0xFFFFFFEF00000000
    machine.put(IMAGE_PA + OFFSETS["efi_mm"] + 16, DIRECT + root)
    machine.map(window, 0x1A00000, PAGE, CODE, enc=not enc, root=root)
    assert found(judge(machine), "efi-runtime").outcome.verdict is Verdict.PASS
    at = 0x1A00000  # the same memory at its own address, and other memory of the kernel's
    machine.map(at, at, 2 * PAGE, CODE, enc=not enc, root=root)
    machine.map(0, 0, PAGE, CODE, root=root)
    assert found(judge(machine), "efi-runtime").outcome.verdict is Verdict.PASS
    machine.flip(at, C, root=root)
    machine.flip(at + PAGE, C, root=root)
    (place,) = found(judge(machine), "efi-runtime").outcome.places
    assert (place.va, place.pa, place.size) == (at, at, PAGE)
    assert place.entry_pa == machine.entry(at, root=root)
    machine.flip(at, C, root=root)
    machine.flip(window, C, root=root)
    machine.flip(window, C, 2, root=root)
    page, table = found(judge(machine), "efi-runtime").outcome.places
    assert (page.va, page.pa) == (window, 0x1A00000)
    assert table.entry_pa == machine.entry(window, 2, root)


@pytest.mark.parametrize("selected", [True, False])
def test_a_cpu_in_the_firmware_is_not_audited_by_the_tables_of_efi(selected: bool) -> None:
    machine = Machine()
    root, window = 0x1304000, 0xFFFFFFEF00000000
    machine.put(IMAGE_PA + OFFSETS["efi_mm"] + 16, DIRECT + root)
    machine.map(window, 0x1A00000, PAGE, CODE, enc=False, root=root)
    if selected:
        machine.cr3 = root | C
    else:
        machine.others = (root | C,)
    result = judge(machine)
    assert not failed(result)
    assert result.root.startswith("init_top_pgt ")


def test_the_ldt_remap_is_suspect_but_no_fault() -> None:
    machine = Machine()
    ldt = 0xFFFF880000000000
    machine.map(ldt, 0x1B00000, PAGE)
    machine.flip(ldt, C, 3)
    outcome = found(judge(machine), "table-entries-encrypted").outcome
    assert outcome.verdict is Verdict.PASS
    assert "1 of the LDT remap lack it" in outcome.text


def test_the_lists_of_6_12_are_walked_too() -> None:
    machine = Machine()
    machine.symbols.fields["vmap_node", "busy.head"] = machine.symbols.fields["gen_pool", "chunks"]
    machine.symbols.sizes["vmap_node"] = 64
    machine.set("nr_vmap_nodes", 2)
    machine.set("vmap_nodes", DIRECT + HEAP + 0x6000)
    first = machine.get(IMAGE_PA + OFFSETS["vmap_area_list"])
    machine.put(HEAP + 0x6000 + 8, first)
    machine.put(HEAP + 0x6040 + 8, DIRECT + HEAP + 0x6048)
    machine.symbols.remove("vmap_area_list")
    assert not failed(judge(machine))
    assert found(judge(machine), "ioremaps-known").outcome.text == "2 mappings in 2 areas"


def test_a_damaged_list_ends() -> None:
    machine = Machine()
    machine.put(HEAP + 0x2000 + 40, DIRECT + HEAP + 0x2000 + 40)  # the first area after itself
    names = [each.name for each in unencrypted(machine.kernel())]
    assert names.count("ioremap") == 1
    machine.put(HEAP + 0x2000 + 40, 0x1234)  # and one that leads nowhere
    assert [each.name for each in unencrypted(machine.kernel())].count("ioremap") == 1


def test_every_exception_cites_its_source() -> None:
    for machine in (Machine(), Machine(sev=3)):
        exempt = list(unencrypted(machine.kernel()))
        assert exempt
        assert all(each.source and each.reason for each in exempt)


def test_missing_symbols_make_rules_inapplicable_not_wrong() -> None:
    machine = Machine()
    for name in (
        "__start_bss_decrypted_unused",
        "early_pmd_flags",
        "protection_map",
        "real_mode_blob",
        "vga_vram_base",
        "_etext",
    ):
        machine.symbols.remove(name)
    result = judge(machine)
    for name in ("bss-decrypted", "early-pmd-flags", "protection-map", "trampoline"):
        assert found(result, name).outcome.verdict is Verdict.NOT_APPLICABLE
    assert found(result, "kernel-text-encrypted").outcome.text == "no symbols _text and _etext"


def test_the_kernel_s_own_tables_are_needed() -> None:
    machine = Machine()
    machine.rip = 0x1001000
    machine.set("system_state", 0)
    machine.cr3 = 0x1500000
    kernel = machine.kernel()
    with pytest.raises(TargetError, match="not on the kernel's own tables"):
        audit(kernel, kernel.cpus[0])


def test_without_cr3_init_top_pgt_is_audited() -> None:
    machine = Machine()
    kernel = machine.kernel()
    kernel.cpus = (replace(kernel.cpus[0], cr3=None),)
    result, view = audit(kernel, kernel.cpus[0])
    assert view.root.table == "init_top_pgt, the kernel's half alone"
    assert found(result, "cr3").outcome.verdict is Verdict.NOT_APPLICABLE
    machine.symbols.remove("init_top_pgt")
    blind = machine.kernel()
    blind.cpus = kernel.cpus
    with pytest.raises(TargetError, match="no table to audit"):
        audit(blind, blind.cpus[0])


def test_the_device_that_the_firmware_s_table_does_not_list_is_a_device() -> None:
    machine = Machine()
    machine.flip(VMALLOC, C)
    assert found(judge(machine), "mmio-decrypted").outcome.places[0].pa == DEVICE
    assert FIRMWARE not in [p.pa for p in found(judge(machine), "mmio-decrypted").outcome.places]


def test_a_lower_half_of_another_cpu_is_judged_with_its_own_root() -> None:
    machine = Machine()
    other = 0x1302000
    machine.write(other + 2048, machine.read(INIT_PGD + 2048, 2048))
    machine.map(USER, 0x1C00000, 2 * PAGE, DATA | bits.USER, root=other)
    machine.flip(USER + PAGE, C, root=other)
    machine.others = (other | C,)
    machine.symbols.fields["tlb_state", "loaded_mm"] = machine.symbols.fields["list_head", "next"]
    machine.symbols._addresses["cpu_tlbstate"] = 0x1200
    machine.put(PERCPU_PA + 0x4000 + 0x1200, DIRECT + HEAP + 0x5000)
    machine.put(HEAP + 0x5000 + 16, DIRECT + other)
    (place,) = found(judge(machine), "lower-half-encrypted").outcome.places
    assert place.entry_pa == machine.entry(USER + PAGE, root=other)
    assert found(judge(machine), "kernel-half-shared").outcome.verdict is Verdict.PASS


def test_where_the_bit_means_shared_pointers_to_tables_have_nothing_to_carry() -> None:
    machine = Machine(mask=0)
    machine.set("cc_mask", C)
    machine.set("physical_mask", C - 1)
    machine.symbols.enumerators["CC_VENDOR_INTEL"] = 2
    machine.symbols._addresses["cc_vendor"] = TEXT + OFFSETS["sev_status"]
    machine.set("sev_status", 2)
    result = judge(machine)
    outcome = found(result, "table-entries-encrypted").outcome
    assert outcome.text == "tables are private without the bit"
    assert found(result, "masks-agree").outcome.text == "cc_mask, physical_mask"


def test_nothing_mapped_nothing_judged() -> None:
    machine = Machine()
    for va in (VMALLOC, VMALLOC + 0x4000, FIXMAP):
        machine.put(machine.entry(va), 0)
    machine.put(machine.entry(USER, 1), 0)
    result = judge(machine)
    for name in ("mmio-decrypted", "firmware-tables", "ioremaps-known", "lower-half-encrypted"):
        assert found(result, name).outcome.verdict is Verdict.NOT_APPLICABLE


def test_without_the_list_of_areas_a_stray_mapping_cannot_be_told() -> None:
    machine = Machine()
    machine.symbols.remove("vmap_area_list")
    assert "list of areas" in found(judge(machine), "ioremaps-known").outcome.text


def test_variables_outside_memory_are_not_judged() -> None:
    machine = Machine()
    for name in ("protection_map", "e820_table", "idt_table"):
        machine.symbols._addresses[name] = TEXT + (64 << 20)
    result = judge(machine)
    assert "outside guest RAM" in found(result, "protection-map").outcome.text
    _early(machine)
    machine.set("early_pmd_flags", 0xE3)
    assert found(judge(machine), "early-pmd-flags").outcome.verdict is Verdict.NOT_APPLICABLE


def test_a_damaged_e820_table_is_not_believed() -> None:
    machine = Machine()
    machine.put(HEAP, 0xFFFFFFFF)
    _, view = audit(machine.kernel(), machine.kernel().cpus[0])
    assert view.ram == machine.ram
    machine.set("e820_table", 0x1234)
    _, view = audit(machine.kernel(), machine.kernel().cpus[0])
    assert view.ram == machine.ram


def test_many_chunks_are_counted_not_listed() -> None:
    machine = Machine()
    chunks = [HEAP + 0x8000 + number * 0x100 for number in range(6)]
    link = HEAP + 0x1000 + 8
    for number, chunk in enumerate(chunks):
        machine.put(link, DIRECT + chunk)
        start = DIRECT + POOL + number * PAGE // 2
        machine.put(chunk + 40, start, start + PAGE // 2 - 1)
        link = chunk
    machine.put(link, DIRECT + HEAP + 0x1000 + 8)
    assert found(judge(machine), "dma-pools-decrypted").outcome.text.endswith("and 2 more")


def test_one_page_mapped_over_and_over_is_one_place() -> None:
    machine = Machine()
    for number in range(8):
        machine.map(VMALLOC + 0x20000 + number * PAGE, 0x1A00000, PAGE, enc=False)
    (place,) = found(judge(machine), "kernel-memory-encrypted").outcome.places
    assert (place.va, place.size) == (VMALLOC + 0x20000, 8 * PAGE)


@pytest.mark.parametrize("offset", [-PAGE, 3 * PAGE])
def test_a_fault_that_touches_an_exception_is_told_from_it(offset: int) -> None:
    machine = Machine()
    machine.flip(DIRECT + TRAMPOLINE + offset, C)
    (place,) = found(judge(machine), "direct-map-encrypted").outcome.places
    assert (place.va, place.size) == (DIRECT + TRAMPOLINE + offset, PAGE)

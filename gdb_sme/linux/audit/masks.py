# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on CR3 and on the variables that put the C-bit into entries."""

from __future__ import annotations

from gdb_sme.errors import ReadError
from gdb_sme.linux.audit.model import Outcome, Place, judged, not_applicable, rule
from gdb_sme.linux.audit.view import View
from gdb_sme.linux.cr3check import check_cr3, missing_image
from gdb_sme.linux.stage import Stage

_GATE = 16
_PROTECTIONS = 16


@rule(
    "cr3",
    what="CR3 of every CPU is __sme_pa of a table that the kernel would have loaded there",
    why="the processor reads the top table as CR3's C-bit says",
    source="load_new_mm_cr3() in arch/x86/mm/tlb.c; arch/x86/kernel/head_64.S",
    encryption=False,
)
def cr3(view: View) -> Outcome:
    """The check of `sme cr3`."""
    if view.kernel.symbols.address("_text") is None:
        return not_applicable(missing_image(view.kernel))
    report = check_cr3(view.kernel)
    if all(check.skipped for check in report.cpus):
        return not_applicable(report.cpus[0].conclusion)
    places = [
        Place(
            None, check.cr3.pa if check.cr3 else None, 0, f"CPU {check.cpu}: {check.conclusion}",
            raw=check.cr3.raw if check.cr3 else None,
        )
        for check in report.cpus
        if not check.passed
    ]  # fmt: skip
    return judged("; ".join(f"CPU {c.cpu}: {c.conclusion}" for c in report.cpus), places)


@rule(
    "early-pmd-flags",
    what="early_pmd_flags has the C-bit once early page faults can be served",
    why="a page mapped by an early fault would be in the clear",
    source="sme_early_init() in arch/x86/mm/mem_encrypt_amd.c, before idt_setup_early_handler()",
)
def early_pmd_flags(view: View) -> Outcome:
    """The variable itself; it stays in .data after boot."""
    value = view.kernel.read_symbol("early_pmd_flags")
    if value is None:
        return not_applicable("this kernel has no early_pmd_flags")
    mask = view.kernel.enc.mask
    if not value & mask and view.stage < Stage.INIT and not _early_handler(view):
        return not_applicable(f"{value:#x}: before sme_early_init(), no fault can be served yet")
    lacks = Place(
        None, view.kernel.pa_of("early_pmd_flags"), 8,
        f"early_pmd_flags {value:#x} lacks sme_me_mask {mask:#x}", raw=value,
    )  # fmt: skip
    return judged(f"{value:#x}", () if value & mask else (lacks,))


def _early_handler(view: View) -> bool:
    """Whether idt_setup_early_handler() has filled idt_table, which .bss has cleared before."""
    pa = view.kernel.pa_of("idt_table")
    try:
        return pa is not None and any(view.kernel.memory.read(pa, _GATE))
    except ReadError:
        return False


@rule(
    "protection-map",
    what="every entry of protection_map has the C-bit",
    why="user memory of that protection would be mapped in the clear",
    source="add_encrypt_protection_map() in arch/x86/mm/pgprot.c (before 6.0: sme_early_init())",
)
def protection_map(view: View) -> Outcome:
    """The sixteen protections of user memory."""
    pa, mask = view.kernel.pa_of("protection_map"), view.kernel.enc.mask
    if pa is None:
        return not_applicable("this kernel has no protection_map")
    try:
        data = view.kernel.memory.read(pa, 8 * _PROTECTIONS)
    except ReadError as error:
        return not_applicable(str(error))
    values = [int.from_bytes(data[8 * n :][:8], "little") for n in range(_PROTECTIONS)]
    if view.stage < Stage.INIT and not any(value & mask for value in values):
        return not_applicable("before sme_early_init()")
    lacking = (
        Place(None, pa + 8 * n, 8, f"protection_map[{n}] {value:#x} lacks the C-bit", raw=value)
        for n, value in enumerate(values)
        if not value & mask
    )
    return judged(f"{_PROTECTIONS} entries", lacking)


@rule(
    "masks-agree",
    what="sme_me_mask, cc_mask, physical_mask and __supported_pte_mask name the same C-bit",
    why="an entry made with one and read with another has a wrong address or loses the C-bit",
    source="sme_enable() in arch/x86/mm/mem_encrypt_identity.c; sme_early_init()",
)
def masks_agree(view: View) -> Outcome:
    """Each variable that this kernel has, against the mask in force."""
    kernel, mask = view.kernel, view.kernel.enc.mask
    evidence = kernel.evidence
    supported = kernel.read_symbol("__supported_pte_mask")
    variables = (
        ("sme_me_mask", evidence.sme_me_mask, evidence.sme_me_mask == mask),
        ("cc_mask", evidence.cc_mask, evidence.cc_mask == mask),
        ("physical_mask", evidence.physical_mask, not (evidence.physical_mask or 0) & mask),
        ("__supported_pte_mask", supported, bool((supported or 0) & mask)),
    )
    shared = not kernel.enc.set_is_encrypted  # then only cc_mask and physical_mask name the bit
    known = [
        each for each in variables[1 if shared else 0 : 3 if shared else 4] if each[1] is not None
    ]
    if not known:
        return not_applicable("none of these variables can be read")
    places = (
        Place(None, kernel.pa_of(name), 8, f"{name} {value:#x} does not fit C-bit mask {mask:#x}",
              raw=value)
        for name, value, good in known
        if not good
    )  # fmt: skip
    return judged(", ".join(name for name, *_ in known), places)

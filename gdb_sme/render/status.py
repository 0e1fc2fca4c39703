# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme status`: the encryption state on one screen, one fact a line."""

from __future__ import annotations

from gdb_sme.core.address import hex_pa, hex_va, size_text
from gdb_sme.core.cr3 import CR0_BITS, CR4_BITS, EFER_BITS, bit_names
from gdb_sme.core.entry import Entry
from gdb_sme.core.paging import PMD
from gdb_sme.linux.macros import match_entry
from gdb_sme.linux.stage import Stage
from gdb_sme.linux.status import CpuStatus, Status
from gdb_sme.linux.tables import NO_TASK
from gdb_sme.render.document import (
    GAP,
    Document,
    Line,
    Span,
    bad,
    comment,
    good,
    keyword,
    name,
    number,
    plain,
    table,
)
from gdb_sme.render.json import hexadecimal


def text(status: Status) -> Document:
    """The screen."""
    rows: list[tuple[Line, Line]] = []

    def row(label: str, *spans: Span) -> None:
        rows.append(((keyword(label),), spans))

    row(*_headline(status))
    row("stage", plain(str(status.stage)))
    first = status.cpus[0].state
    if first.paging and first.long_mode:
        row("paging", plain(f"{len(first.mode.levels)} levels"))
    else:
        row("paging", comment("not in long mode"))
    _kernel_rows(status, row)
    for cpu in status.cpus:
        row(f"CPU {cpu.state.index}", *_cr3(cpu))
        row("", *_registers(cpu))
    row("target", plain(status.target))
    row("memory", plain(f"{status.memory}; RAM {_ram(status)}"))
    row("scans", plain(status.scans))
    row("symbols", *_symbols(status))
    return Document(table(rows))


def _headline(status: Status) -> tuple[str, *tuple[Span, ...]]:
    encryption, bit = status.encryption, status.encryption.bit
    if bit.position is not None:
        word = "C-bit" if bit.set_is_encrypted else "shared bit"
        return (
            encryption.title,
            good("active"),
            plain(f"{GAP}{word} {bit.position}, mask "),
            number(hex_va(bit.mask)),
            comment(f"{GAP}({status.c_bit_source})"),
        )
    if encryption.scheme != "none":
        return (encryption.title, good("active"), comment(f"{GAP}page tables carry no bit for it"))
    if status.c_bit_in_cr3 is not None:
        return (
            "encryption",
            bad(f"sme_me_mask is 0 but CR3 carries bit {status.c_bit_in_cr3}"),
            comment(f"{GAP}to decode with it: set sme c-bit {status.c_bit_in_cr3}"),
        )
    if status.image is None:
        return ("encryption", plain("unknown"), comment(f"{GAP}the kernel cannot be asked"))
    if status.evidence.sme_me_mask is None:
        why = "no sme_me_mask: a kernel without CONFIG_AMD_MEM_ENCRYPT"
    else:
        why = "sme_me_mask is 0"
    return ("encryption", plain("none"), comment(f"{GAP}{why}"))


def _kernel_rows(status: Status, row: object) -> None:
    assert callable(row)
    image, evidence = status.image, status.evidence
    if image is None:
        row("kernel", comment(status.no_image))
        return
    above = f"{image.koff:#x} above" if image.koff else "at"
    moved = f"{above} its symbols' address"
    row(
        "kernel",
        name("_text"),
        plain(" at "),
        number(hex_va(image.va)),
        plain(" = "),
        number(hex_pa(image.pa)),
        comment(f"  ({moved}; found by {image.how})"),
    )
    if status.phys_base is not None:
        row("phys_base", number(f"{status.phys_base:#x}"))
    for label, value in (
        ("sme_me_mask", evidence.sme_me_mask),
        ("sev_status", evidence.sev_status),
        ("cc_mask", evidence.cc_mask),
    ):
        if value is not None:
            row(label, number(hex_va(value)))
    if evidence.physical_mask is not None:
        lost = status.lost_address_bits
        detail = "complete: 52 bits" if not lost else _lost(status)
        row("physical_mask", number(hex_va(evidence.physical_mask)), comment(f"  {detail}"))
    if status.x86_phys_bits:
        row("x86_phys_bits", plain(str(status.x86_phys_bits)))
    if status.early_pmd_flags is not None:
        row("early_pmd_flags", *_early_pmd_flags(status))


def _lost(status: Status) -> str:
    mask = status.evidence.physical_mask
    assert mask is not None
    bits = [str(bit) for bit in range(52) if not mask >> bit & 1]
    return f"lost: bit {', '.join(bits)}"


def _early_pmd_flags(status: Status) -> tuple[Span, ...]:
    raw = status.early_pmd_flags
    assert raw is not None
    entry = Entry(raw, PMD, status.encryption.bit)
    spans = [number(hex_va(raw)), plain(GAP)]
    macro = match_entry(entry)
    if macro is not None:
        spans.append(name(str(macro)))
    else:
        spans.append(name(" ".join(flag for flag in entry.flags)))
    if status.encryption.bit.mask and not entry.c_bit:
        # sme_early_init() sets it, in the middle of the stage on early_top_pgt.
        early = status.stage.stage <= Stage.EARLY
        spans.append(comment(f"{GAP}no ENC yet") if early else bad(f"{GAP}no ENC"))
    return tuple(spans)


def _cr3(cpu: CpuStatus) -> tuple[Span, ...]:
    if cpu.cr3 is None:
        return _without_cr3(cpu)
    spans = [plain("CR3 "), number(hex_va(cpu.cr3.raw)), plain(GAP)]
    spans += [good("C") if cpu.cr3.c_bit else plain("-"), plain(GAP)]
    if cpu.table is not None:
        spans.append(name(cpu.table))
    elif not cpu.state.paging:
        spans.append(comment("not in use: paging is off"))
    else:
        spans.append(comment("no table that is known"))
    if cpu.cr3.pcid:
        spans.append(plain(f"  PCID {cpu.cr3.pcid:#x}"))
    return tuple(spans)


def _without_cr3(cpu: CpuStatus) -> tuple[Span, ...]:
    none = comment("no CR3 from this target")
    if cpu.kernels is None:
        return (none,)
    known = cpu.kernels
    walks = "; " if known.detail == NO_TASK else "; the kernel walks "
    spans = [none, plain(walks), name(known.name), plain(" at "), number(hex_pa(known.pa))]
    return (*spans, comment(f", {known.detail}")) if known.detail else tuple(spans)


def _registers(cpu: CpuStatus) -> tuple[Span, ...]:
    state = cpu.state
    spans: list[Span] = []
    for label, value, names in (
        ("CR0", state.cr0, CR0_BITS),
        ("CR4", state.cr4, CR4_BITS),
        ("EFER", state.efer, EFER_BITS),
    ):
        if value is None:
            continue
        if spans:
            spans.append(plain(", "))
        spans += [plain(f"{label} "), name(" ".join(bit_names(value, names)) or "0")]
    return tuple(spans) or (comment("no control registers from this target"),)


def _ram(status: Status) -> str:
    if not status.ram:
        return "unknown"
    return size_text(sum(known.size for known in status.ram) & ~0xFFFFF)


def _symbols(status: Status) -> tuple[Span, ...]:
    if status.symbols is None:
        return (comment("none; load them with: file vmlinux"),)
    build_id = f"build-id {status.build_id}" if status.build_id else "no build-id"
    if status.image is not None:
        return plain(f"{status.symbols}, {build_id}  "), good("match the guest")
    return (plain(f"{status.symbols}, {build_id}"),)


def payload(status: Status) -> dict[str, object]:
    """The same facts as `text`, addresses and masks in hexadecimal."""
    evidence, image = status.evidence, status.image
    return {
        "scheme": status.encryption.scheme,
        "active": bool(status.encryption.bit.mask),
        "c_bit": status.encryption.bit.position,
        "c_bit_source": status.c_bit_source,
        "c_bit_in_cr3": status.c_bit_in_cr3,
        "sme_me_mask": hexadecimal(evidence.sme_me_mask),
        "sev_status": hexadecimal(evidence.sev_status),
        "cc_mask": hexadecimal(evidence.cc_mask),
        "cc_vendor": evidence.cc_vendor,
        "physical_mask": hexadecimal(evidence.physical_mask),
        "lost_address_bits": status.lost_address_bits,
        "x86_phys_bits": status.x86_phys_bits,
        "early_pmd_flags": hexadecimal(status.early_pmd_flags),
        "phys_base": hexadecimal(status.phys_base),
        "stage": status.stage.stage.name.lower(),
        "stage_detail": status.stage.detail,
        "levels": len(status.cpus[0].state.mode.levels),
        "kernel": None
        if image is None
        else {
            "va": hexadecimal(image.va),
            "pa": hexadecimal(image.pa),
            "koff": hexadecimal(image.koff),
            "found_by": image.how,
        },
        "no_kernel": status.no_image or None,
        "cpus": [_cpu_payload(cpu) for cpu in status.cpus],
        "target": status.target,
        "memory": status.memory,
        "scans": status.scans,
        "ram": [[hexadecimal(known.start), hexadecimal(known.end)] for known in status.ram],
        "symbols": status.symbols,
        "build_id": status.build_id,
    }


def _cpu_payload(cpu: CpuStatus) -> dict[str, object]:
    state = cpu.state
    return {
        "cpu": state.index,
        "rip": hex_va(state.rip),
        "cr0": hexadecimal(state.cr0),
        "cr3": hexadecimal(state.cr3),
        "cr4": hexadecimal(state.cr4),
        "efer": hexadecimal(state.efer),
        "c_bit": cpu.cr3.c_bit if cpu.cr3 else None,
        "table": cpu.table,
        "kernels_table": None
        if cpu.kernels is None
        else {
            "name": cpu.kernels.name,
            "pa": hexadecimal(cpu.kernels.pa),
            "detail": cpu.kernels.detail or None,
        },
    }

# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on memory of devices and firmware."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gdb_sme.core.address import size_text
from gdb_sme.core.ranges import MappedRange
from gdb_sme.core.scan import Scan, scan
from gdb_sme.linux import exceptions, tables
from gdb_sme.linux.audit.model import Outcome, judged, not_applicable, rule
from gdb_sme.linux.audit.tables import pointer
from gdb_sme.linux.audit.view import View, cut
from gdb_sme.linux.layout import Region

#: PAT entries that Linux uses for devices: write-combining, uncached-minus, uncached.
_UNCACHED = (1, 2, 3)


def _firmware(view: View, found: MappedRange) -> bool:
    """Whether ``found`` maps what the firmware kept in memory."""
    return found.attributes.cache_index not in _UNCACHED and any(
        found.pa in each for each in view.firmware
    )


def _foreign(view: View) -> list[MappedRange]:
    """What is mapped outside the direct map and is no RAM."""
    region = view.direct_map
    return [
        each
        for each in view.ranges
        if not region.start <= each.va < region.end and not view.is_ram(each.pa)
    ]


def _decrypted(view: View, mapped: list[MappedRange], fault: str) -> Outcome:
    """Judge that none of ``mapped`` carries the C-bit."""
    return judged(
        f"{len(mapped)} mappings, {size_text(sum(each.size for each in mapped))}",
        view.places([each for each in mapped if each.attributes.encrypted], fault),
    )


@rule(
    "mmio-decrypted",
    what="devices (ioremap, local APIC, I/O APIC, BARs in user space) are mapped without the C-bit",
    why="the C-bit is no address bit of a device: the access goes nowhere, or is refused",
    source="__ioremap_caller() in arch/x86/mm/ioremap.c; FIXMAP_PAGE_NOCACHE in "
    "arch/x86/include/asm/fixmap.h; io_remap_pfn_range() in include/linux/mm.h",
)
def mmio_decrypted(view: View) -> Outcome:
    """What is neither RAM nor kept by the firmware, outside the direct map."""
    devices = [each for each in _foreign(view) if not _firmware(view, each)]
    if not devices:
        return not_applicable("no device is mapped")
    return _decrypted(view, devices, "a device with C-bit")


@rule(
    "firmware-tables",
    what="ACPI, SMBIOS and other memory of the firmware is mapped without the C-bit under SME",
    why="the firmware wrote it before encryption: with the C-bit it reads as garbage",
    source="memremap_should_map_decrypted() and __ioremap_check_encrypted() in "
    "arch/x86/mm/ioremap.c",
)
def firmware_tables(view: View) -> Outcome:
    """Mappings of what e820 calls reserved, ACPI or NVS, outside the direct map."""
    tables_ = [each for each in _foreign(view) if _firmware(view, each)]
    if not tables_:
        return not_applicable("nothing of the firmware is mapped")
    if view.guest:
        return not_applicable("under SEV memremap() maps it with the C-bit, ioremap() without")
    return _decrypted(view, tables_, "memory of the firmware with C-bit")


@rule(
    "vga-decrypted",
    what="the VGA window that vgacon writes is mapped without the C-bit",
    why="the text on the screen would be ciphertext",
    source="VGA_MAP_MEM in arch/x86/include/asm/vga.h",
)
def vga_decrypted(view: View) -> Outcome:
    """The window where vgacon has found it."""
    kernel = view.kernel
    base = kernel.read_symbol("vga_vram_base")
    size = kernel.read_symbol("vga_vram_size", 4)
    region = view.direct_map
    if not base or not size or not region.start <= base < region.end:
        return not_applicable("vgacon does not run")
    wrong = [each for each in view.within(base, base + size) if each.attributes.encrypted]
    return judged(
        f"{size_text(size)} at {base - view.page_offset:#x}", view.places(wrong, "C-bit is set")
    )


#: arch/x86/include/asm/pgtable_64_types.h: EFI_VA_END to EFI_VA_START.
_EFI_WINDOW = "EFI runtime"


@rule(
    "efi-runtime",
    what="efi_mm maps the firmware's services without the C-bit under SME, with it under SEV",
    why="the firmware's code and data are plain text on a host and private in a guest",
    source="__map_region() in arch/x86/platform/efi/efi_64.c",
)
def efi_runtime(view: View) -> Outcome:
    """The window of efi_mm's own tables, the same memory at its own address, and the way there."""
    table = tables.efi_table(view.kernel)
    if table is None:
        return not_applicable("no EFI runtime services: efi_mm has no tables")
    window: Region = view.regions[_EFI_WINDOW]
    services = _efi_scan(view, table.pa, window.start, window.end)
    identity = _efi_scan(view, table.pa, 0, 1 << (view.cpu.mode.va_bits - 1))
    wrong = [
        each
        for each in (*services.ranges, *_of_the_same(identity, services))
        if each.attributes.encrypted != (view.guest and view.is_ram_or_firmware(each.pa))
    ]
    bare = [use for each in (services, identity) for use in each.tables if use.encrypted is False]
    fault = "in efi_mm: " + ("no C-bit" if view.guest else "C-bit is set")
    ways = (pointer(view, use) for use in bare)
    mapped = size_text(sum(each.size for each in services.ranges))
    return judged(
        f"{mapped} in the window of efi_mm",
        (
            *view.places(wrong, fault, table.pa),
            *(replace(way, detail=f"in efi_mm: {way.detail}") for way in ways),
        ),
    )


def _efi_scan(view: View, root: int, start: int, end: int) -> Scan:
    return scan(
        view.kernel.memory, root, view.cpu.mode, view.kernel.table_enc,
        start=start, end=end, nx_enabled=view.cpu.nx_enabled,
    )  # fmt: skip


def _of_the_same(identity: Scan, services: Scan) -> Iterator[MappedRange]:
    """The parts of ``identity`` that map what ``services`` do.

    The rest is the kernel's own, with other rules: page 0, the memory map, GHCBs
    (efi_setup_page_tables() in arch/x86/platform/efi/efi_64.c, 6.1 and 6.12).
    """
    for each in identity.ranges:
        for physical in (other.physical for other in services.ranges):
            start, end = max(each.pa, physical.start), min(each.physical.end, physical.end)
            if start < end:
                yield cut(each, each.va_of(start), each.va_of(end))


@rule(
    "ioremaps-known",
    what="every mapping that is no RAM lies in an area of ioremap() or in the fixmap",
    why="a stray mapping of a device has no owner who knows its encryption",
    source="get_vm_area_caller() with VM_IOREMAP: mm/vmalloc.c",
    encryption=False,
)
def ioremaps_known(view: View) -> Outcome:
    """What the vmalloc region maps that is no RAM, against the kernel's list of areas."""
    region = view.regions["vmalloc"]
    mapped = [r for r in view.within(region.start, region.end) if not view.is_ram(r.pa)]
    if not mapped:
        return not_applicable("nothing but RAM is mapped in vmalloc")
    areas = [(va, va + size) for va, size, _ in exceptions.io_areas(view.kernel)]
    if not areas:
        return not_applicable("the kernel's list of areas is not to be had")
    stray = [r for r in mapped if not any(a <= r.va and r.end <= b for a, b in areas)]
    return judged(
        f"{len(mapped)} mappings in {len(areas)} areas",
        view.places(stray, "in no area of ioremap()"),
    )

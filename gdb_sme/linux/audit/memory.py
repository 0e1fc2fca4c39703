# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on ordinary memory, wherever it is mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gdb_sme.core.address import size_text
from gdb_sme.core.ports import Range
from gdb_sme.core.ranges import Conflict, MappedRange, conflicts
from gdb_sme.linux.audit.model import Outcome, Place, judged, not_applicable, rule
from gdb_sme.linux.audit.view import View, cut
from gdb_sme.linux.stage import Stage


def _names(view: View, bare: list[MappedRange]) -> str:
    """Which exceptions the unencrypted ranges ``bare`` fall under, in words."""
    known = dict.fromkeys(
        each.name for each in view.exempt if any(_touches(part, each.physical) for part in bare)
    )
    return f", but {', '.join(known)}" if known else ""


def _unexplained_fail(view: View, text: str, places: Iterable[Place]) -> Outcome:
    """As `judged`; without types a place may well be by design, and nothing is said."""
    found = tuple(places)
    if found and not view.typed:
        return not_applicable(
            f"{len(found)} unencrypted places, and no types to tell what is by design; "
            "load the kernel's vmlinux"
        )
    return judged(text, found)


def _encrypted(view: View, mapped: list[MappedRange], fault: str) -> Outcome:
    """Judge that all of ``mapped`` carries the C-bit but what is shared by design."""
    bare = [each for each in mapped if not each.attributes.encrypted]
    text = f"{size_text(sum(each.size for each in mapped))}{_names(view, bare)}"
    return _unexplained_fail(view, text, view.places(view.unexplained(bare), fault))


def _touches(found: MappedRange, physical: Range) -> bool:
    return found.pa < physical.end and physical.start < found.physical.end


@rule(
    "direct-map-encrypted",
    what="the direct map carries the C-bit but where memory is shared by design",
    why="the kernel would read its own pages as ciphertext there, and write them in the clear",
    source="PAGE_KERNEL and init_memory_mapping() in arch/x86/mm/init.c",
)
def direct_map_encrypted(view: View) -> Outcome:
    """Every page of the direct map; buffers of dma_alloc_coherent() have no list to look in."""
    if view.stage < Stage.INIT:
        return not_applicable("init_mem_mapping() has not built the direct map yet")
    region = view.direct_map
    return _encrypted(view, list(view.within(region.start, region.end)), "no C-bit")


@rule(
    "kernel-memory-encrypted",
    what="RAM in vmalloc, vmemmap, modules, stacks, cpu_entry_area and fixmap carries the C-bit",
    why="the same page has the C-bit in the direct map: two views of it differ",
    source="PAGE_KERNEL in arch/x86/include/asm/pgtable_types.h",
)
def kernel_memory_encrypted(view: View) -> Outcome:
    """The upper half but the direct map and the kernel image, as far as it is RAM."""
    ram = [each for each in _elsewhere(view) if view.is_ram(each.pa)]
    return _encrypted(view, ram, "RAM without C-bit")


def _elsewhere(view: View) -> Iterator[MappedRange]:
    """What is mapped in the upper half outside the direct map and the kernel image."""
    image = view.regions["kernel image"]
    edges = ((view.direct_map.end, image.start), (image.end, 1 << 64))
    for start, end in ((1 << 63, view.direct_map.start), *edges):
        yield from view.within(start, end)


@rule(
    "lower-half-encrypted",
    what="RAM in the lower half, user space or the early identity map, carries the C-bit",
    why="a process's pages in the clear, or read as garbage",
    source="add_encrypt_protection_map() in arch/x86/mm/pgprot.c; __startup_64() early",
)
def lower_half_encrypted(view: View) -> Outcome:
    """The lower half of every CPU's root."""
    half = 1 << 63
    mapped = [each for each in view.ranges if each.va < half and view.is_ram(each.pa)]
    if not mapped:
        return not_applicable("nothing is mapped in the lower half")
    return _encrypted(view, mapped, "RAM without C-bit")


@rule(
    "boot-data-unmapped",
    what="no early mapping without the C-bit is left of boot_params and the command line",
    why="they are mapped without it only to be copied; later reads would see plain text",
    source="copy_bootdata() in arch/x86/kernel/head64.c; sme_unmap_bootdata() in "
    "arch/x86/mm/mem_encrypt_amd.c",
)
def boot_data_unmapped(view: View) -> Outcome:
    """Leaves without the C-bit in the direct map of early_top_pgt."""
    if view.stage >= Stage.INIT:
        return not_applicable("early_top_pgt is not in use")
    region = view.direct_map
    bare = [r for r in view.within(region.start, region.end) if not r.attributes.encrypted]
    found = view.kernel.symbols.nearest(_link_address(view))
    if bare and found is not None and found[0] in _COPYING:
        return not_applicable(f"{found[0]} is copying it now")
    return judged("none in early_top_pgt", view.places(bare, "early mapping without C-bit"))


_COPYING = ("copy_bootdata", "sme_map_bootdata", "sme_unmap_bootdata", "__sme_early_map_unmap_mem")


def _link_address(view: View) -> int:
    image = view.kernel.image
    return view.cpu.rip - (image.koff if image else 0)


@rule(
    "views-agree",
    what="no physical page is mapped both with and without the C-bit",
    why="what is written through one mapping is garbage through the other",
    source="set_memory_encrypted() and cpa_process_alias() in arch/x86/mm/pat/set_memory.c",
)
def views_agree(view: View) -> Outcome:
    """All conflicts, less the aliases that Linux itself leaves: .bss..decrypted, firmware."""
    found = conflicts(view.ranges)
    aliases = [each for each in view.exempt if each.virtual is not None]
    places, excepted = [], dict[str, None]()
    for each in found:
        left = list(_unexplained(view, each))
        if left:
            places += [_conflict(view, each, part) for part in left]
            continue
        names = [e.name for e in aliases if any(_touches(r, e.physical) for r in each.unencrypted)]
        excepted |= dict.fromkeys(names or ["firmware memory"])
    known = f", but {', '.join(excepted)}" if excepted else ""
    return _unexplained_fail(view, f"no page is mapped both ways{known}", places)


def _unexplained(view: View, conflict: Conflict) -> Iterator[MappedRange]:
    """The unencrypted mappings of ``conflict`` that are no alias known for it."""
    if not view.is_ram(conflict.physical.start):
        # The ISA hole is in the direct map with the C-bit; what reads firmware maps it without.
        return
    for each in conflict.unencrypted:
        start = each.va_of(max(conflict.physical.start, each.pa))
        end = each.va_of(min(conflict.physical.end, each.physical.end))
        part = cut(each, start, end)
        aliased = (e for e in view.exempt if e.virtual is not None)
        if not any(e.covers(part.va, part.pa) for e in aliased):
            yield part


def _conflict(view: View, conflict: Conflict, part: MappedRange) -> Place:
    other = conflict.encrypted[0]
    at = other.va_of(max(conflict.physical.start, other.pa))
    return view.place(part, f"no C-bit here, C-bit at {at:#x}")


@rule(
    "no-writable-code",
    what="no page of the kernel is writable and executable at once",
    why="whoever can write there runs code",
    source="ptdump_check_wx() in arch/x86/mm/dump_pagetables.c (CONFIG_DEBUG_WX)",
    encryption=False,
)
def no_writable_code(view: View) -> Outcome:
    """The upper half, permissions combined over the levels."""
    if not view.reached("SYSTEM_RUNNING"):
        return not_applicable("before mark_rodata_ro()")
    half = 1 << 63
    both = [
        each for each in view.scan.ranges
        if each.va >= half and each.attributes.permissions.write
        and each.attributes.permissions.execute
    ]  # fmt: skip
    upper = sum(1 for each in view.scan.ranges if each.va >= half)
    return judged(f"{upper} ranges of the upper half", view.places(both, "writable and executable"))

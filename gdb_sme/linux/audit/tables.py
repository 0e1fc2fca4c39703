# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on the page tables themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from gdb_sme.core import entry as bits
from gdb_sme.core.address import PAGE_SIZE
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, TABLE_SIZE
from gdb_sme.core.ranges import MappedRange
from gdb_sme.core.scan import TableUse
from gdb_sme.linux.audit.model import Outcome, Place, judged, not_applicable, rule
from gdb_sme.linux.audit.view import View, cut
from gdb_sme.linux.translate import Root


@rule(
    "tables-well-formed",
    what="no table is unreadable, below itself, or has reserved bits set",
    why="a processor faults on such an entry, or walks where no table is",
    source="AMD APM volume 2, section 5.4",
    encryption=False,
)
def tables_well_formed(view: View) -> Outcome:
    """What the scan could not follow."""
    troubles = [t for _, each in view.other_scans for t in each.troubles]
    places = [
        Place(
            t.va, None, t.size, f"{t.kind}: {t.detail}", level=t.level, entry_pa=t.entry_pa,
            raw=t.raw,
        )
        for t in (*view.scan.troubles, *troubles)
    ]  # fmt: skip
    if view.scan.stopped_at is not None:
        places.append(
            Place(view.scan.stopped_at, None, 1, "the scan gave up: too much to be tables")
        )
    return judged(f"{view.scan.tables_read} table pages", places)


@rule(
    "table-entries-encrypted",
    what="every entry that points to a table carries the C-bit, at every level",
    why="without it the processor reads the next table as ciphertext",
    source="_KERNPG_TABLE and _PAGE_TABLE in arch/x86/include/asm/pgtable_types.h",
)
def table_entries_encrypted(view: View) -> Outcome:
    """Every pointer to a table, the upper half once, the lower half of every CPU's root."""
    if not view.kernel.enc.set_is_encrypted:
        return not_applicable("tables are private without the bit")
    uses = [use for use in view.table_uses if use.entry_pa is not None]
    bare = [use for use in uses if not use.encrypted]
    ldt = view.regions["LDT remap"]
    suspect = [use for use in bare if ldt.start <= use.va < ldt.end]
    note = f", {len(suspect)} of the LDT remap lack it (map_ldt_struct)" if suspect else ""
    return judged(
        f"{len(uses) - len(bare)} of {len(uses)} entries carry the C-bit{note}",
        (pointer(view, use) for use in bare if use not in suspect),
    )


def pointer(view: View, use: TableUse) -> Place:
    """The entry that leads to a table, as a place."""
    names = [level.name for level in view.cpu.mode.levels]
    above = view.cpu.mode.levels[names.index(use.level) - 1]
    return Place(
        use.va, use.pa, above.span * use.places, f"the {use.level} table is reached without C-bit",
        level=above.name, entry_pa=use.entry_pa, raw=use.raw,
    )  # fmt: skip


@rule(
    "table-pages-encrypted",
    what="no page that holds a table is mapped without the C-bit anywhere",
    why="entries written through such a mapping are garbage to the processor",
    source="pgd_alloc() and __pte_alloc() take ordinary pages: arch/x86/mm/pgtable.c",
)
def table_pages_encrypted(view: View) -> Outcome:
    """The physical pages of the tables among the unencrypted mappings."""
    pages = sorted({use.pa for use in view.table_uses})
    hit = (
        _page_of(each, pa)
        for each in view.unencrypted
        for pa in pages[
            bisect_left(pages, each.physical.start) : bisect_left(pages, each.physical.end)
        ]
    )
    return judged(f"{len(pages)} table pages", view.places(hit, "holds a table, no C-bit"))


def _page_of(found: MappedRange, pa: int) -> MappedRange:
    va = found.va_of(pa)
    return cut(found, va, va + PAGE_SIZE)


@rule(
    "kernel-half-shared",
    what="every root maps the kernel as init_top_pgt does",
    why="an entry of one root alone, with another C-bit say, shows in one task only",
    source="pgd_ctor() in arch/x86/mm/pgtable.c copies the upper half",
    encryption=False,
)
def kernel_half_shared(view: View) -> Outcome:
    """The upper halves of all roots against init_top_pgt's, entry by entry."""
    if not view.other_roots:
        return not_applicable("there is one root")
    roots = (view.root, *view.other_roots)
    init_pa = view.kernel.pa_of("init_top_pgt")
    model = next((root for root in roots if root.pa == init_pa), view.root)
    others = [root for root in roots if root is not model]
    expected = _upper_half(view, model.pa)
    places = [place for root in others for place in _differences(view, root, model, expected)]
    return judged(f"{', '.join(map(_name, others))} as {_name(model)}", places)


def _name(root: Root) -> str:
    return root.table or f"{root.pa:#x}"


def _upper_half(view: View, root_pa: int) -> list[int]:
    data = view.kernel.memory.read(root_pa, TABLE_SIZE)
    return [
        int.from_bytes(data[index * ENTRY_SIZE :][:ENTRY_SIZE], "little")
        for index in range(ENTRIES // 2, ENTRIES)
    ]


def _differences(view: View, root: Root, model: Root, expected: list[int]) -> Iterator[Place]:
    level = view.cpu.mode.levels[0]
    # The LDT remap is each process's own.
    own = level.index(view.regions["LDT remap"].start)
    changing = bits.ACCESSED | bits.DIRTY
    for number, (raw, wanted) in enumerate(zip(_upper_half(view, root.pa), expected, strict=True)):
        index = ENTRIES // 2 + number
        if index != own and (raw ^ wanted) & ~changing and (raw | wanted) & bits.PRESENT:
            yield Place(
                (1 << 64) - (ENTRIES - index) * level.span, None, level.span,
                f"in {_name(root)}; {wanted:#x} in {_name(model)}",
                level=level.name, entry_pa=root.pa + index * ENTRY_SIZE, raw=raw,
            )  # fmt: skip

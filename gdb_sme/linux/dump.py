# SPDX-License-Identifier: GPL-2.0-or-later
"""A scan with what the kernel knows about it: the answer of `sme dump`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ranges import MappedRange
from gdb_sme.core.scan import Scan, TableUse, scan
from gdb_sme.errors import UsageError
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.layout import Region, regions
from gdb_sme.linux.translate import Root


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the kernel's layout an address is.

    Attributes:
        region: name of the region, None in none.
        symbol: nearest symbol, ``"_text+0x8"``, None without one or outside image and modules.
    """

    region: str | None
    symbol: str | None


class Places:
    """Finds the `Place` of addresses; quick when they come in order.

    Args:
        kernel: the kernel.
        cpu: the CPU whose paging mode decides on the layout.
    """

    def __init__(self, kernel: Kernel, cpu: CpuState) -> None:
        self._kernel = kernel
        self._regions = regions(kernel, cpu)
        self._last: Region | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all regions, lowest first."""
        return tuple(region.name for region in self._regions)

    def region(self, va: int) -> str | None:
        """Name of the region that ``va`` is in, None in none."""
        last = self._last
        if last is None or not last.start <= va < last.end:
            found = (region for region in self._regions if region.start <= va < region.end)
            last = self._last = next(found, None)
        return None if last is None else last.name

    def find(self, va: int) -> Place:
        """The place of ``va``."""
        region = self.region(va)
        return Place(region, self._symbol(va) if region in ("kernel image", "modules") else None)

    def _symbol(self, va: int) -> str | None:
        image = self._kernel.image
        nearest = self._kernel.symbols.nearest(va - image.koff if image else va)
        if nearest is None:
            return None
        return f"{nearest[0]}+{nearest[1]:#x}" if nearest[1] else nearest[0]


@dataclass(frozen=True, slots=True)
class Filter:
    """What to show of a scan; None and False show all.

    Attributes:
        encrypted: only what is encrypted, or only what is not.
        write_execute: only what is writable and executable at once.
        user: only what user mode can reach.
        level: only pages that an entry of this level maps, or tables of such entries.
        page_size: only pages of this size in bytes.
        region: only this region of the layout.
    """

    encrypted: bool | None = None
    write_execute: bool = False
    user: bool = False
    level: str | None = None
    page_size: int | None = None
    region: str | None = None

    def shows(self, each: MappedRange, level: str | None) -> bool:
        """Whether a range passes, its region not looked at. ``level`` is that of its entries."""
        how = each.attributes
        return (
            (self.encrypted is None or how.encrypted == self.encrypted)
            and (not self.write_execute or (how.permissions.write and how.permissions.execute))
            and (not self.user or how.permissions.user)
            and (self.level is None or self.level == level)
            and (self.page_size is None or self.page_size == how.page_size)
        )

    def shows_table(self, use: TableUse) -> bool:
        """Whether a table passes, its region not looked at; permissions and sizes are of pages."""
        return (self.encrypted is None or use.encrypted == self.encrypted) and (
            self.level is None or self.level == use.level
        )


@dataclass(frozen=True, slots=True)
class Dump:
    """What a root maps, filtered.

    Attributes:
        root: the root.
        scan: the whole scan.
        ranges: the ranges that pass the filter, each with its place.
        tables: the tables that pass, each with the place of what they map; None unless asked for.
        c_bit: letter of the column for the encryption bit: ``"C"``, or ``"S"`` for a shared bit.
    """

    root: Root
    scan: Scan
    ranges: tuple[tuple[MappedRange, Place], ...]
    tables: tuple[tuple[TableUse, Place], ...] | None
    c_bit: str


def scan_root(
    kernel: Kernel,
    cpu: CpuState,
    root: Root,
    *,
    start: int = 0,
    end: int = 1 << 64,
    with_tables: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """Everything that ``root`` maps as ``cpu`` would see it; see `gdb_sme.core.scan.scan`."""
    return scan(
        kernel.memory, root.pa, cpu.mode, kernel.table_enc,
        start=start, end=end, physical_bits=kernel.physical_bits, nx_enabled=cpu.nx_enabled,
        with_tables=with_tables, progress=progress,
    )  # fmt: skip


def dump(
    kernel: Kernel,
    cpu: CpuState,
    root: Root,
    found: Scan,
    only: Filter,
    *,
    with_tables: bool = False,
) -> Dump:
    """Filter a scan and add where in the kernel each part is.

    Raises:
        UsageError: ``only`` names a region that there is not.
    """
    places = Places(kernel, cpu)
    region = None if only.region is None else _region(only.region, places.names)
    levels = {level.span: level.name for level in cpu.mode.levels if level.leaf != "never"}

    def inside(va: int) -> bool:
        return region is None or places.region(va) == region

    shown: Iterator[MappedRange] = (
        each
        for each in found.ranges
        if only.shows(each, levels[each.attributes.page_size]) and inside(each.va)
    )
    tables: Sequence[TableUse] = ()
    if with_tables:
        root_use = (use._replace(encrypted=root.c_bit) for use in found.tables[:1])
        tables = (*root_use, *found.tables[1:])
    return Dump(
        root=root,
        scan=found,
        ranges=() if with_tables else tuple((each, places.find(each.va)) for each in shown),
        tables=tuple(
            (use, Place(places.region(use.va), None))
            for use in tables
            if only.shows_table(use) and inside(use.va)
        )
        if with_tables
        else None,
        c_bit="C" if kernel.table_enc.set_is_encrypted else "S",
    )


def _region(name: str, known: tuple[str, ...]) -> str:
    """The region that is meant by ``name``: hyphens may stand for spaces, case does not count."""
    wanted = name.lower().replace("-", " ")
    for each in known:
        if each.lower().replace("-", " ") == wanted:
            return each
    names = ", ".join(each.replace(" ", "-") for each in known)
    raise UsageError(f"there is no region {name!r}; the regions are {names}")

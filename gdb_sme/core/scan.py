# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole address space of a root: every page that it maps, as merged ranges.

Each table page is read once and each of its entries looked at once (`gdb_sme.core.runs`), wherever
the table is reached from; a table reached by several paths appears at each place. Where very much
is mapped in 4 KiB pages and memory is mapped in this process, `gdb_sme.core.bulk` looks at all
tables of a level at once, if NumPy is there.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from gdb_sme.core import entry as bits
from gdb_sme.core.address import PHYSICAL_BITS, align_up
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, TABLE_SIZE, PagingMode
from gdb_sme.core.ports import PhysMemory, mapped_parts
from gdb_sme.core.ranges import Attributes, MappedRange, as_repeated
from gdb_sme.core.runs import LevelFacts, Run, TableRuns, attributes_of, clip, level_facts
from gdb_sme.errors import ReadError

if TYPE_CHECKING:
    from gdb_sme.core.bulk import Found

#: Ranges, table visits and troubles after which a scan ends: garbage must not fill the debugger's
#: memory, and no range of Linux comes near it (a TiB in 4 KiB pages is 2**18 tables).
LIMIT = 1 << 21

#: Tables whose content is kept in case that they are reached again: 64 MiB.
_KEPT = 1 << 14

#: Tables of PTEs in one scan, those of 1 GiB, after which NumPy is imported and the scan begins
#: again. The import takes some 70 ms once a session; the tables before it took 5 to 300, and with
#: it 512 take less than one.
PAYS = 512

_EMPTY = bytes(TABLE_SIZE)
_ENTRY = struct.Struct("<Q")
_RIGHTS = bits.RW | bits.USER


class TableUse(NamedTuple):
    """A table page at one place of the address space.

    Attributes:
        pa: its physical address.
        level: what its entries are: ``"pgd"`` for the root, ``"pte"`` at the bottom.
        va: first virtual address that it translates.
        entry_pa: physical address of the entry that points to it, None for the root.
        raw: that entry; for the root its physical address alone.
        encrypted: whether the entry makes the processor read the table encrypted; None for the
            root, which CR3 decides.
        places: consecutive entries, this one first, that all point to this table.
        empty: whether all 512 entries are zero.
    """

    pa: int
    level: str
    va: int
    entry_pa: int | None
    raw: int
    encrypted: bool | None
    places: int
    empty: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something in the tables that a processor would fault on, or that no kernel would make.

    Attributes:
        kind: ``"unreadable"`` (a table that is no memory), ``"reserved"`` (bits that must be zero)
            or ``"loop"`` (a table below itself).
        va: first virtual address concerned.
        size: bytes of the address space concerned.
        level: level of the entry: ``"pgd"``, or ``"root"`` for the root itself.
        entry_pa: physical address of the entry, None for the root.
        raw: the entry; the root's physical address for the root.
        detail: in words.
    """

    kind: str
    va: int
    size: int
    level: str
    entry_pa: int | None
    raw: int
    detail: str


@dataclass(frozen=True, slots=True)
class Scan:
    """All that a root maps.

    Attributes:
        ranges: by virtual address.
        tables: every use of a table page, by virtual address, upper levels first, if they were
            asked for. Below a table with a `TableUse.places`, only the uses at its first place.
        troubles: by virtual address.
        tables_read: distinct table pages that were read.
        stopped_at: virtual address at which the scan gave up (`LIMIT`), None when it is complete.
    """

    ranges: tuple[MappedRange, ...]
    tables: tuple[TableUse, ...]
    troubles: tuple[Trouble, ...]
    tables_read: int
    stopped_at: int | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of page tables that were read."""
        return self.tables_read * TABLE_SIZE


def scan(
    memory: PhysMemory,
    root_pa: int,
    mode: PagingMode,
    enc: EncryptionBit,
    *,
    start: int = 0,
    end: int = 1 << 64,
    physical_bits: int = PHYSICAL_BITS,
    nx_enabled: bool = True,
    limit: int = LIMIT,
    progress: Callable[[int], None] | None = None,
    with_tables: bool = True,
    in_bulk: bool | None = None,
) -> Scan:
    """Everything that is mapped from ``root_pa``, in address order.

    Args:
        memory: physical memory.
        root_pa: physical address of the top table, without flags and encryption bit.
        mode: 4 or 5 levels.
        enc: the encryption bit in force.
        start: only pages that end above this virtual address.
        end: only pages that begin below this virtual address, 0 to 2**64.
        physical_bits: physical address width of the CPU; higher address bits are reserved.
        nx_enabled: EFER.NXE.
        limit: see `LIMIT`.
        progress: called with a virtual address for every table, or for all below another.
        with_tables: whether to make `Scan.tables`.
        in_bulk: whether to use NumPy; None where it pays (`PAYS`). The result is the same.

    Nothing in the tables makes it fail: what cannot be followed is told in `Scan.troubles`.
    """
    facts = tuple(level_facts(level, enc, physical_bits, nx_enabled) for level in mode.levels)

    def work_so(in_bulk: bool | None) -> _Scan:
        return _Scan(
            memory, mode, enc, facts,
            limit=limit, progress=progress, with_tables=with_tables, in_bulk=in_bulk,
        )  # fmt: skip

    work, stopped_at = work_so(in_bulk), None
    with memory.batch(), _no_collection():
        try:
            try:
                work.run(root_pa, start, end)
            except _Pays:
                work = work_so(True)
                work.run(root_pa, start, end)
        except _LimitReached as reached:
            stopped_at = reached.va
    return Scan(
        tuple(work.ranges), tuple(work.tables), tuple(work.troubles), work.tables_read, stopped_at
    )


def how_scanned(memory: PhysMemory) -> str:
    """In words how scans of ``memory`` look at many tables; imports no NumPy to know it."""
    if not mapped_parts(memory):
        return "one table after the other: memory is not mapped"
    if importlib.util.find_spec("numpy") is None:
        return "one table after the other: no NumPy (Debian: python3-numpy)"
    return f"with NumPy from {PAYS} tables of PTEs on"


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's cyclic collector: a scan makes no cycles, and a million ranges to look at
    again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _LimitReached(Exception):
    def __init__(self, va: int) -> None:
        super().__init__(va)
        self.va = va


class _Pays(Exception):
    """So much is mapped that to begin again with NumPy is quicker than to go on."""


class _Place(NamedTuple):
    """Where a table stands.

    ``depth`` levels below the root, translating from ``base`` on; ``rights`` are RW and USER of the
    levels above, ``no_execute`` their NX.
    """

    depth: int
    base: int
    rights: int
    no_execute: int


class _Scan:
    """The state of one scan."""

    def __init__(
        self,
        memory: PhysMemory,
        mode: PagingMode,
        enc: EncryptionBit,
        facts: tuple[LevelFacts, ...],
        *,
        limit: int,
        progress: Callable[[int], None] | None,
        with_tables: bool,
        in_bulk: bool | None,
    ) -> None:
        self._memory = memory
        self._mode = mode
        self._enc = enc
        self._facts = facts
        self._limit = limit
        self._progress = progress
        self._low = self._high = 0
        self._cache: dict[int, bytes | ReadError] = {}
        self._path: list[int] = []
        self._loops: set[int] = set()
        self._runs = TableRuns()
        self._kinds: dict[tuple[int, int, int], dict[int, Attributes]] = {}
        self.ranges: list[MappedRange] = []
        self.tables: list[TableUse] = []
        self.troubles: list[Trouble] = []
        self._with_tables = with_tables
        self._uses = 0
        self._read_pas: set[int] = set()
        self._taken = 0
        self._bottom = len(facts) - 1
        self._bottom_tables = 0
        self._in_bulk = in_bulk

    @property
    def _room(self) -> int:
        """What is left of the limit."""
        return self._limit - len(self.ranges) - self._uses - len(self.troubles)

    @property
    def tables_read(self) -> int:
        """Distinct table pages that were read."""
        return len(self._read_pas) + self._taken

    def run(self, root_pa: int, start: int, end: int) -> None:
        """Scan both halves of the address space, from ``start`` to ``end``."""
        try:
            data = self._read(root_pa)
        except ReadError as error:
            self.troubles.append(
                Trouble("unreadable", 0, 1 << 64, "root", None, root_pa, error.reason)
            )
            return
        top = self._mode.levels[0].name
        self._uses += 1
        if self._with_tables:
            self.tables.append(TableUse(root_pa, top, 0, None, root_pa, None, 1, data == _EMPTY))
        found = self._look_in_bulk(data, root_pa, start, end)
        half = 1 << (self._mode.va_bits - 1)
        for first, last, base in ((0, half, 0), ((1 << 64) - half, 1 << 64, (1 << 64) - 2 * half)):
            self._low, self._high = max(start, first), min(end, last)
            if self._low < self._high:
                place = _Place(0, base, _RIGHTS, 0)
                if found is None:
                    self._table(data, root_pa, place)
                else:
                    self._take_over(found, data, root_pa, place)

    def _read(self, pa: int) -> bytes:
        data = self._cache.get(pa)
        if data is None:
            try:
                data = self._memory.read(pa, TABLE_SIZE)
            except ReadError as error:
                data = error
            else:
                self._read_pas.add(pa)
                if data == _EMPTY:
                    data = _EMPTY
            if data is _EMPTY or len(self._cache) < _KEPT:
                self._cache[pa] = data
        if isinstance(data, ReadError):
            raise data
        return data

    def _table(self, data: bytes, pa: int, place: _Place) -> None:
        """Scan the table ``data`` at ``pa`` where it stands at ``place``."""
        if self._room < 0:
            raise _LimitReached(place.base)
        if self._progress is not None:
            self._progress(place.base)
        if data is _EMPTY:
            return
        if place.depth == self._bottom:
            self._bottom_tables += 1
            if self._bottom_tables > PAYS and self._in_bulk is None:
                self._in_bulk = self._can_in_bulk()
                if self._in_bulk:
                    raise _Pays
        self._entries(self._runs_within(data, place), data, pa, place)

    def _runs_within(self, data: bytes, place: _Place) -> list[Run]:
        """The present entries of a table that are asked for, as runs."""
        facts, base = self._facts[place.depth], place.base
        span = facts.span
        runs = self._runs.of(data, facts)
        if self._low <= base and base + ENTRIES * span <= self._high:
            return runs
        first = max(0, self._low - base) // span
        last = min(ENTRIES, -(-(self._high - base) // span))
        return [cut for each in runs for cut in clip(each, first, last)]

    def _entries(self, runs: list[Run], data: bytes, pa: int, place: _Place) -> None:
        """Scan what ``runs`` of the table ``data`` map."""
        depth, base, rights, no_execute = place
        facts = self._facts[depth]
        span, kind_mask, page_mask = facts.span, facts.kind_mask, facts.page_mask
        kinds = self._kinds.setdefault((depth, rights, no_execute), {})
        ranges, new = self.ranges, tuple.__new__
        last_end = last_pa = next_pa = -1
        for run in runs:
            index, length, raw, step = run
            kind = raw & kind_mask
            attributes = kinds.get(kind)
            if attributes is None:
                attributes = self._attributes(raw, facts, place)
                if attributes is None:
                    self._no_page(data, pa, place, run)
                    last_end = -1
                    continue
                kinds[kind] = attributes
            if length > 1 and not step:
                attributes = as_repeated(attributes)
            va, size, page_pa = base + index * span, length * span, raw & page_mask
            if last_end == va and page_pa not in (last_pa, next_pa):
                # As MappedRange(...), without the call of a Python function that this would be.
                ranges.append(new(MappedRange, (va, size, page_pa, attributes)))
            else:
                self._emit(va, size, page_pa, attributes)
            last_end, last_pa, next_pa = va + size, page_pa, page_pa + size

    def _can_in_bulk(self) -> bool:
        """Whether memory is mapped in this process, and NumPy is there."""
        if not mapped_parts(self._memory):
            return False
        try:
            importlib.import_module("gdb_sme.core.bulk")
        except ImportError:
            return False
        return True

    def _look_in_bulk(self, data: bytes, root_pa: int, start: int, end: int) -> Found | None:
        """What `gdb_sme.core.bulk` finds, None where it is not to be used."""
        wanted = "numpy" in sys.modules if self._in_bulk is None else self._in_bulk
        if not wanted or start >= end or not self._can_in_bulk():
            return None
        from gdb_sme.core.bulk import AddressSpace

        space = AddressSpace(
            mapped_parts(self._memory), self._enc, self._facts,
            start=start, last=end - 1, progress=self._progress,
        )  # fmt: skip
        return space.look(data, root_pa, self._room, with_tables=self._with_tables)

    def _take_over(self, found: Found, data: bytes, root_pa: int, place: _Place) -> None:
        """Scan half of the root: ``found`` is what most of its entries map."""
        if self._room < 0:
            raise _LimitReached(place.base)
        half = range(ENTRIES // 2, ENTRIES) if place.base else range(ENTRIES // 2)
        done = half.start
        if found.left.any():
            for run in self._runs_within(data, place):
                if found.left[run[0]]:
                    self._take_part(found, range(done, run[0]), data, root_pa, place)
                    self._entries([run], data, root_pa, place)
                    done = run[0] + run[1]
        self._take_part(found, range(done, half.stop), data, root_pa, place)

    def _take_part(
        self, found: Found, entries: range, data: bytes, root_pa: int, place: _Place
    ) -> None:
        """Take over the tables in ``found`` that ``entries`` of the root lead to, and pages."""
        tables, pages = found.tables.of(entries), found.pages.of(entries)
        if self._room < len(tables.pas) + len(pages.vas):
            # One by one, to stop at the right place.
            runs = [run for run in self._runs_within(data, place) if run[0] in entries]
            self._entries(runs, data, root_pa, place)
            return
        new = tuple.__new__
        self._uses += len(tables.pas)
        if found.left.any():
            self._read_pas.update(tables.pas.tolist())
        else:
            self._taken += len(tables.pas)  # each once, and no other is read
        if self._with_tables:
            names = [facts.name for facts in self._facts]
            uses = zip(
                tables.pas.tolist(), map(names.__getitem__, tables.depths.tolist()),
                tables.vas.tolist(), tables.entry_pas.tolist(), tables.raws.tolist(),
                tables.encrypted.tolist(), repeat(1), tables.empty.tolist(),
            )  # fmt: skip
            self.tables.extend(map(new, repeat(TableUse), uses))
        kinds = pages.kinds.tolist()
        known = {kind: self._of_kind(kind) for kind in set(kinds)}
        columns = zip(
            pages.vas.tolist(), pages.sizes.tolist(), pages.pas.tolist(),
            map(known.__getitem__, kinds), strict=True,
        )  # fmt: skip
        for each in columns:  # the first may continue what was there before
            self._emit(*each)
            break
        self.ranges.extend(map(new, repeat(MappedRange), columns))

    def _of_kind(self, kind: int) -> Attributes:
        """See `gdb_sme.core.bulk.Pages`."""
        level = self._facts[kind >> PHYSICAL_BITS & 7].level
        return attributes_of(level, self._enc, kind & ~(7 << PHYSICAL_BITS))

    def _attributes(self, raw: int, facts: LevelFacts, place: _Place) -> Attributes | None:
        """How an entry maps its page, None when it maps none: a table's, or a faulty one."""
        if not raw & facts.leaf_bit or raw & facts.leaf_reserved:
            return None
        kind = raw & facts.kind_mask & (place.rights | ~_RIGHTS) | place.no_execute
        return attributes_of(facts.level, self._enc, kind)

    def _no_page(self, data: bytes, pa: int, place: _Place, run: Run) -> None:
        """Follow entries that point to a table, or tell what is wrong with them."""
        facts, raw = self._facts[place.depth], run[2]
        leaf = raw & facts.leaf_bit
        reserved = raw & (facts.leaf_reserved if leaf else facts.pointer_reserved)
        if reserved:
            detail = f"reserved bits {reserved:#x} are set"
            self._trouble("reserved", data, pa, place, run, detail=detail)
            return
        self._path.append(pa)
        self._children(data, pa, place, run)
        self._path.pop()

    def _children(self, data: bytes, pa: int, place: _Place, run: Run) -> None:
        """Scan the table that the entries of ``run`` point to, at every place."""
        depth, base, rights, no_execute = place
        index, length, masked, _ = run
        facts = self._facts[depth]
        span = facts.span
        child = self._enc.address(masked)
        va, entry_pa = base + index * span, pa + index * ENTRY_SIZE
        if child in self._path and entry_pa not in self._loops:
            self._loops.add(entry_pa)
            detail = f"points to {child:#x}, a table that it is below itself"
            self._trouble("loop", data, pa, place, run, detail=detail)
        try:
            table = self._read(child)
        except ReadError as error:
            detail = f"points to {child:#x}: {error.reason}"
            self._trouble("unreadable", data, pa, place, run, detail=detail)
            return
        self._uses += 1
        if self._with_tables:
            (raw,) = _ENTRY.unpack_from(data, index * ENTRY_SIZE)
            self.tables.append(
                TableUse(
                    child, self._facts[depth + 1].name, va, entry_pa, raw,
                    self._enc.encrypted(raw), length, table is _EMPTY,
                )
            )  # fmt: skip
        if table is _EMPTY and self._room >= 0:
            return
        rights, no_execute = rights & masked, no_execute | masked & bits.NX
        for number in range(length):
            ranges, troubles = len(self.ranges), len(self.troubles)
            self._table(table, child, _Place(depth + 1, va, rights, no_execute))
            whole = self._low <= va
            va += span
            rest = min((length - 1 - number) * span, max(0, self._high - va))
            if not rest or not whole or len(self.troubles) > troubles:
                continue
            last = self.ranges[-1] if self.ranges else None
            if len(self.ranges) == ranges and (last is None or last.end <= va - span):
                return  # nothing is mapped there, so nothing at the other places
            if last is not None and last.repeated and last.va <= va - span and last.end == va:
                # One page all over: KASAN's early shadow maps terabytes so.
                rest = align_up(rest, last.attributes.page_size)
                self.ranges[-1] = last._replace(size=last.size + rest)
                return

    def _emit(self, va: int, size: int, pa: int, attributes: Attributes) -> None:
        """Add pages: to the last range if they continue it, else as a new range."""
        ranges = self.ranges
        if ranges:
            last = ranges[-1]
            if last.va + last.size == va:
                merged = last.attributes
                if merged is attributes and not merged.repeated and last.pa + last.size == pa:
                    ranges[-1] = MappedRange(last.va, last.size + size, last.pa, attributes)
                    return
                if last.pa == pa and _may_repeat(last, size, attributes):
                    ranges[-1] = MappedRange(last.va, last.size + size, pa, as_repeated(merged))
                    return
        ranges.append(MappedRange(va, size, pa, attributes))

    def _trouble(
        self, kind: str, data: bytes, pa: int, place: _Place, run: Run, *, detail: str
    ) -> None:
        facts = self._facts[place.depth]
        (raw,) = _ENTRY.unpack_from(data, run[0] * ENTRY_SIZE)
        self.troubles.append(
            Trouble(
                kind=kind,
                va=place.base + run[0] * facts.span,
                size=run[1] * facts.span,
                level=facts.name,
                entry_pa=pa + run[0] * ENTRY_SIZE,
                raw=raw,
                detail=detail,
            )
        )


def _may_repeat(last: MappedRange, size: int, attributes: Attributes) -> bool:
    """Whether pages of the same physical page as ``last`` make one repeated range with it."""
    single = attributes.page_size
    if not (last.repeated or last.size == single) or not (attributes.repeated or size == single):
        return False
    return as_repeated(last.attributes) is as_repeated(attributes)

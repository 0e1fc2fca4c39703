# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole address space at once, with NumPy: the tables of one level as one array after another.

Python sees runs of pages only. `gdb_sme.core.scan` imports this where it pays, does without where
there is no NumPy, and looks itself at what is left out here: everything below an entry of the root
that leads to something particular (a table that is reached twice, or outside of mapped memory, a
page that repeats, reserved bits). What comes out is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gdb_sme.core import entry as bits
from gdb_sme.core.address import PAGE_FRAME_MASK, PAGE_SHIFT, PAGE_SIZE, PHYSICAL_BITS, U64
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, TABLE_SIZE
from gdb_sme.core.ports import MappedPart
from gdb_sme.core.runs import KEEP, LevelFacts

#: Tables that are compared at once: half a MiB, which a processor's second cache holds.
_AT_ONCE = 128

_ENTRY = np.dtype("<u8")
_INDEX = ENTRIES - 1
_INDEX_BITS = _INDEX.bit_length()
_RIGHTS = bits.RW | bits.USER | bits.NX

#: Room to work in, for all scans: memory that is new each time costs as much as the comparing.
_TABLES = np.empty((_AT_ONCE, ENTRIES), _ENTRY)
_STEPS = np.empty(_AT_ONCE * ENTRIES, _ENTRY)
_BREAKS = np.empty(_AT_ONCE * ENTRIES, bool)

#: The first entry of each.
_FIRST = np.arange(0, _AT_ONCE * ENTRIES, ENTRIES)

#: PTEs of pages that follow one another, from any first one on, and the same as bytes, which are
#: compared several times as fast.
_EXPECTED = bytearray(_AT_ONCE * TABLE_SIZE)
_FOLLOWING = np.frombuffer(_EXPECTED, _ENTRY)
_FOLLOWING += np.arange(_AT_ONCE * ENTRIES, dtype=_ENTRY) * _ENTRY.type(PAGE_SIZE)

_NONE = np.empty(0, _ENTRY)

_Array = Any  # numpy.ndarray, whose generic parameters differ between NumPy 1 and 2


@dataclass(frozen=True, slots=True)
class Tables:
    """Uses of table pages, as arrays of equal length: by virtual address, upper levels first.

    Attributes:
        slots: entry of the root that leads there, 0 to 511.
        pas: physical address of the table.
        depths: levels below the root.
        vas: first virtual address that it translates.
        entry_pas: physical address of the entry that points to it.
        raws: that entry.
        encrypted: whether it makes the processor read the table encrypted.
        empty: whether all entries of the table are zero.
    """

    slots: _Array
    pas: _Array
    depths: _Array
    vas: _Array
    entry_pas: _Array
    raws: _Array
    encrypted: _Array
    empty: _Array

    def of(self, entries: range) -> Tables:
        """Those that ``entries`` of the root lead to."""
        return _some(self, _part(self.slots, entries))


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages that follow one another and are mapped alike, as arrays of equal length, by address.

    Attributes:
        slots: entry of the root that leads there, 0 to 511.
        vas: first virtual address.
        sizes: in bytes.
        pas: first physical address.
        kinds: the other bits of the entries, with the rights of all levels (RW, USER, NX) combined,
            and without Accessed, Dirty and what is not the hardware's; in bits 54:52 how many
            levels below the root they are.
    """

    slots: _Array
    vas: _Array
    sizes: _Array
    pas: _Array
    kinds: _Array

    def of(self, entries: range) -> Pages:
        """Those that ``entries`` of the root lead to."""
        return _some(self, _part(self.slots, entries))


@dataclass(frozen=True, slots=True)
class Found:
    """What a root maps.

    Attributes:
        left: for each entry of the root whether what it maps is left to the caller.
        tables: uses of table pages below the other entries.
        pages: what these map.
    """

    left: _Array
    tables: Tables
    pages: Pages


@dataclass(slots=True)
class _Entries:
    """Present entries by virtual address: what they translate, and what the levels above allow.

    ``allowed`` has RW, USER and, the other way round, NX.
    """

    raws: _Array
    vas: _Array
    entry_pas: _Array
    allowed: _Array


@dataclass(slots=True)
class _Runs:
    """As `Pages`, with the whole entry of the first page as ``keys``, rights combined."""

    slots: _Array
    vas: _Array
    sizes: _Array
    depths: _Array
    keys: _Array


_Columns = TypeVar("_Columns", Tables, Pages, _Entries, _Runs)


@dataclass(slots=True)
class _Level:
    """The tables of one level. ``rows`` are their places in mapped memory, in pages; ``used``
    says which have a present entry."""

    entries: _Entries
    pas: _Array
    rows: _Array
    used: _Array


class AddressSpace:
    """What one root maps, looked at level by level.

    Args:
        parts: memory that is mapped in this process, not overlapping.
        enc: the encryption bit in force.
        facts: of each level, from the root down.
        start: first virtual address that is asked for.
        last: last virtual address that is asked for.
        progress: called with a virtual address now and then.
    """

    def __init__(
        self,
        parts: Sequence[MappedPart],
        enc: EncryptionBit,
        facts: Sequence[LevelFacts],
        *,
        start: int,
        last: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._parts: list[tuple[int, int, _Array]] = []  # address, number of the first page, pages
        rows = 0
        for each in parts:
            count = each.physical.size // TABLE_SIZE
            if not each.physical.start % TABLE_SIZE:
                pages = np.frombuffer(each.content, _ENTRY, count * ENTRIES).reshape(-1, ENTRIES)
                self._parts.append((each.physical.start, rows, pages))
                rows += count
        self._seen = np.zeros(rows, bool)
        self._turn = np.empty(rows, np.int32)
        self._enc = enc
        self._facts = facts
        self._address = _u64(PAGE_FRAME_MASK & ~enc.mask)
        self._start, self._last = start, last
        self._whole = start == 0 and last == U64
        self._progress = progress
        self._left = np.zeros(ENTRIES, bool)
        self._top = _u64(facts[0].span.bit_length() - 1)
        self._guard = _u64(facts[-1].guard)
        self._alike = _u64(facts[-1].guard | KEEP & ~PAGE_FRAME_MASK)
        self._page_masks = np.array([each.page_mask for each in facts], _ENTRY)
        self._spans = np.array([each.span for each in facts], _ENTRY)

    def look(self, root: bytes, root_pa: int, room: int, *, with_tables: bool) -> Found | None:
        """All that the table ``root`` at ``root_pa`` maps.

        None when that is more than ``room`` ranges and uses of tables. Unless ``with_tables``, only
        the first two columns of `Found.tables` are filled.
        """
        entries = self._of_root(np.frombuffer(root, _ENTRY), root_pa)
        rows, mapped = self._rows(np.array([root_pa], _ENTRY))
        self._seen[rows[mapped]] = True
        levels: list[_Level] = []
        pages: list[tuple[_Array, _Array, _Array, int]] = []
        for depth, facts in enumerate(self._facts[1:], 1):
            level = self._below(entries, self._facts[depth - 1])
            levels.append(level)
            room -= len(level.pas)
            if room < 0:
                return None
            if not len(level.pas):
                break
            if depth == len(self._facts) - 1:
                vas, sizes, keys = self._runs(level)
            else:
                entries, vas, keys = self._upper(level, facts)
                sizes = np.full(len(vas), facts.span, _ENTRY)
            pages.append((vas, sizes, keys, depth))
        merged = self._merged(pages)
        if len(merged.vas) > room:
            return None
        return Found(self._left, self._uses(levels, with_tables), merged)

    def _of_root(self, table: _Array, root_pa: int) -> _Entries:
        indexes = (table & _u64(bits.PRESENT)).nonzero()[0].astype(_ENTRY)
        vas = indexes << self._top
        vas[indexes >= ENTRIES // 2] -= _u64(self._facts[0].span * ENTRIES & U64)
        allowed = np.full(len(indexes), _RIGHTS, _ENTRY)
        return _Entries(
            table[indexes.astype(np.intp)], vas, _u64(root_pa) + indexes * _u64(ENTRY_SIZE), allowed
        )

    def _slots(self, vas: _Array) -> _Array:
        return (vas >> self._top & _u64(_INDEX)).astype(np.intp)

    def _leave(self, vas: _Array) -> None:
        """Leave to the caller what the entries of the root map that lead to ``vas``."""
        self._left[self._slots(vas)] = True

    def _below(self, entries: _Entries, facts: LevelFacts) -> _Level:
        """The tables that ``entries`` point to."""
        if not self._whole:
            ends = entries.vas + _u64(facts.span - 1)
            inside = (entries.vas <= self._last) & (ends >= self._start)
            if not inside.all():
                entries = _some(entries, inside)
        pas = entries.raws & self._address
        rows, mapped = self._rows(pas)
        good = mapped & (entries.raws & _u64(facts.pointer_reserved) == 0)
        if mapped.all():
            good &= self._first_time(rows)
        else:
            good[mapped] &= self._first_time(rows[mapped])
        if not good.all():
            self._leave(entries.vas[~good])
            good &= ~self._left[self._slots(entries.vas)]
            entries, pas, rows = _some(entries, good), pas[good], rows[good]
        allowed = entries.allowed & (entries.raws ^ _u64(bits.NX))
        level = _Entries(entries.raws, entries.vas, entries.entry_pas, allowed)
        return _Level(level, pas, rows, np.zeros(len(pas), bool))

    def _rows(self, pas: _Array) -> tuple[_Array, _Array]:
        """Where the tables at ``pas`` are in mapped memory, in pages, and which of them are."""
        rows, mapped = np.zeros(len(pas), np.intp), np.zeros(len(pas), bool)
        for start, first, pages in self._parts:
            offsets = pas - _u64(start)  # huge below the start
            inside = offsets < _u64(pages.nbytes)
            at = (offsets >> _u64(PAGE_SHIFT)).astype(np.intp) + first
            if inside.all():
                return at, inside
            rows[inside] = at[inside]
            mapped |= inside
        return rows, mapped

    def _first_time(self, rows: _Array) -> _Array:
        """Which of ``rows`` were never met: a loop, too, leads to a table a second time."""
        turn = np.arange(len(rows), dtype=np.int32)
        self._turn[rows] = turn
        again = self._seen[rows] | (self._turn[rows] != turn)
        if again.any():
            again = np.isin(rows, rows[again])
        self._seen[rows] = True
        return ~again

    def _gather(self, level: _Level) -> Iterator[tuple[int, _Array]]:
        """The entries of the tables of a level, some tables at a time, and the first's number."""
        rows = level.rows
        apart = rows[1:] - rows[:-1] != 1
        scattered = bool(apart.any())
        parts = [
            (first, pages)
            for _, first, pages in self._parts
            if ((rows >= first) & (rows < first + len(pages))).any()
        ]
        for number in range(0, len(rows), _AT_ONCE):
            if self._progress is not None:
                self._progress(int(level.entries.vas[number]))
            here = rows[number : number + _AT_ONCE]
            first, pages = parts[0]
            if len(parts) > 1:
                tables = _TABLES[: len(here)]
                for first, pages in parts:
                    inside = (here >= first) & (here < first + len(pages))
                    tables[inside] = pages[here[inside] - first]
            elif scattered and apart[number : number + len(here) - 1].any():
                # No row is out of bounds: "clip" only keeps NumPy from buffering.
                tables = _TABLES[: len(here)]
                pages.take(here - first, axis=0, out=tables, mode="clip")
            else:
                tables = pages[here[0] - first : here[0] - first + len(here)]
            yield number, tables.reshape(-1)

    def _upper(self, level: _Level, facts: LevelFacts) -> tuple[_Entries, _Array, _Array]:
        """The entries of tables above the PTEs that point to a table; address and key of pages."""
        raws, at = [], []
        for first, flat in self._gather(level):
            present = (flat.view(np.uint8)[::ENTRY_SIZE] & bits.PRESENT).view(bool).nonzero()[0]
            raws.append(flat[present])
            at.append(present + first * ENTRIES)
        every, places = np.concatenate(raws), np.concatenate(at)
        tables = places >> _INDEX_BITS
        level.used[tables] = True
        indexes = (places & _INDEX).astype(_ENTRY)
        entries = _Entries(
            every,
            level.entries.vas[tables] + indexes * _u64(facts.span),
            level.pas[tables] + indexes * _u64(ENTRY_SIZE),
            level.entries.allowed[tables],
        )
        leaf = every & _u64(facts.leaf_bit) != 0
        if not leaf.any():
            return entries, _NONE, _NONE
        pages = _some(entries, leaf)
        self._leave(pages.vas[pages.raws & _u64(facts.leaf_reserved) != 0])
        return _some(entries, ~leaf), pages.vas, self._key(pages.raws, pages.allowed)

    def _runs(self, level: _Level) -> tuple[_Array, _Array, _Array]:
        """Address, size and key of the pages of PTEs that follow one another within a table."""
        all_starts, all_raws = [], []
        for first, flat in self._gather(level):
            if _follow_one_another(flat):
                all_starts.append(_FIRST + first * ENTRIES)
                all_raws.append(flat[::ENTRIES])
            else:
                steps, breaks = _STEPS[: len(flat)], _BREAKS[: len(flat)]
                np.subtract(flat[1:], flat[:-1], out=steps[1:])
                np.not_equal(steps, PAGE_SIZE, out=breaks)
                breaks[::ENTRIES] = True
                starts = breaks.nonzero()[0]
                all_raws.append(flat[starts])
                starts += first * ENTRIES
                all_starts.append(starts)
        starts, raws = np.concatenate(all_starts), np.concatenate(all_raws)
        lengths = np.empty(len(starts), np.intp)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1] = len(level.pas) * ENTRIES - starts[-1]
        present = raws & _u64(bits.PRESENT) != 0
        if not present.all():
            starts, lengths, raws = starts[present], lengths[present], raws[present]
        tables = starts >> _INDEX_BITS
        level.used[tables] = True
        sizes = lengths.astype(_ENTRY) * _u64(PAGE_SIZE)
        vas = level.entries.vas[tables] + (starts & _INDEX).astype(_ENTRY) * _u64(PAGE_SIZE)
        keys = self._key(raws, level.entries.allowed[tables])
        wrong = (keys ^ keys + sizes - _u64(PAGE_SIZE)) & self._guard != 0
        wrong |= keys & _u64(self._facts[-1].leaf_reserved) != 0
        self._leave(vas[wrong])
        return vas, sizes, keys

    def _key(self, raws: _Array, allowed: _Array) -> _Array:
        """What makes the mapping of a leaf: see `Pages.keys`."""
        allowed = allowed | _u64(U64 & ~_RIGHTS)
        return (raws & _u64(KEEP) ^ _u64(bits.NX)) & allowed ^ _u64(bits.NX)

    def _merged(self, levels: Sequence[tuple[_Array, _Array, _Array, int]]) -> Pages:
        """The pages of all levels, in one row."""
        vas, sizes, keys = (
            np.concatenate([_NONE, *(each[column] for each in levels)]) for column in range(3)
        )
        depths = np.array([each[3] for each in levels], np.intp)
        depths = depths.repeat([len(each[0]) for each in levels])
        pages = _Runs(self._slots(vas), vas, sizes, depths, keys)
        if (vas[1:] < vas[:-1]).any():
            pages = _some(pages, np.argsort(vas, kind="stable"))
        if self._left.any():
            pages = _some(pages, ~self._left[pages.slots])
        again = _adjacent(pages) & (pages.keys[1:] == pages.keys[:-1])
        if again.any():
            again &= pages.sizes[:-1] == self._spans[pages.depths[:-1]]
            self._left[pages.slots[:-1][again]] = self._left[pages.slots[1:][again]] = True
            pages = _some(pages, ~self._left[pages.slots])
        before, after = pages.keys[:-1], pages.keys[1:]
        linked = _adjacent(pages) & (after == before + pages.sizes[:-1])
        linked &= (after ^ before) & self._alike == 0
        if linked.any():
            heads = np.flatnonzero(np.concatenate(([True], ~linked)))
            sizes = np.add.reduceat(pages.sizes, heads)
            pages = _some(pages, heads)
            pages = _Runs(pages.slots, pages.vas, sizes, pages.depths, pages.keys)
        if not self._whole:
            pages = self._cut(pages)
        masks = self._page_masks[pages.depths]
        kinds = pages.keys & ~masks | pages.depths.astype(_ENTRY) << _u64(PHYSICAL_BITS)
        return Pages(pages.slots, pages.vas, pages.sizes, pages.keys & masks, kinds)

    def _cut(self, pages: _Runs) -> _Runs:
        """The pages that are asked for."""
        start, last = self._start, self._last
        ends = pages.vas + (pages.sizes - _u64(1))
        inside = (pages.vas <= last) & (ends >= start)
        pages, ends = _some(pages, inside), ends[inside]
        spans = self._spans[pages.depths]
        for at in (pages.vas < start).nonzero()[0]:
            more = _u64(start) - pages.vas[at] & ~(spans[at] - _u64(1))
            for column in (pages.vas, pages.keys):
                column[at] += more
            pages.sizes[at] -= more
        for at in (ends > last).nonzero()[0]:
            pages.sizes[at] -= ends[at] - _u64(last) & ~(spans[at] - _u64(1))
        return pages

    def _uses(self, levels: Sequence[_Level], with_tables: bool) -> Tables:
        """The uses of table pages, in one row."""
        vas = np.concatenate([each.entries.vas for each in levels])
        slots, pas = self._slots(vas), np.concatenate([each.pas for each in levels])
        order = np.argsort(vas, kind="stable")
        if self._left.any():
            order = order[~self._left[slots[order]]]
        if not with_tables:
            return Tables(slots[order], pas[order], *[_NONE] * 6)
        raws, entry_pas = (
            np.concatenate([getattr(each.entries, name) for each in levels])
            for name in ("raws", "entry_pas")
        )
        depths = np.arange(1, len(levels) + 1).repeat([len(each.pas) for each in levels])
        encrypted = np.zeros(len(vas), bool)
        if self._enc.mask:
            encrypted = (raws & _u64(self._enc.mask) != 0) == self._enc.set_is_encrypted
        columns = (slots, pas, depths, vas, entry_pas, raws, encrypted, self._empty(levels))
        return Tables(*(each[order] for each in columns))

    def _empty(self, levels: Sequence[_Level]) -> _Array:
        """Which tables hold nothing at all, not even what is not present."""
        for level in levels:
            unused = (~level.used).nonzero()[0]
            if len(unused):
                some = _Level(
                    _some(level.entries, unused), level.pas[unused], level.rows[unused], unused
                )
                for first, flat in self._gather(some):
                    tables = unused[first : first + len(flat) // ENTRIES]
                    level.used[tables] = flat.reshape(-1, ENTRIES).any(axis=1)
        return ~np.concatenate([each.used for each in levels])


def _follow_one_another(flat: _Array) -> bool:
    """Whether all entries of as many tables as are looked at together map page after page."""
    first = int(flat[0])
    if len(flat) != len(_FOLLOWING) or int(flat[-1]) - first != (len(flat) - 1) * PAGE_SIZE:
        return False
    np.add(_FOLLOWING, _u64(first - int(_FOLLOWING[0]) & U64), out=_FOLLOWING)
    return bool(_EXPECTED == flat.data)  # noqa: SIM300 (a memoryview would go one by one)


def _adjacent(pages: _Runs) -> _Array:
    """Which pages, the first left out, follow those before them in a table of the same level."""
    next_to: _Array = pages.vas[1:] == pages.vas[:-1] + pages.sizes[:-1]
    next_to &= pages.depths[1:] == pages.depths[:-1]
    return next_to


def _some(columns: _Columns, which: _Array | slice) -> _Columns:
    """Those rows of all ``columns``."""
    return type(columns)(*[getattr(columns, name)[which] for name in columns.__slots__])


def _part(slots: _Array, entries: range) -> slice:
    return slice(*slots.searchsorted((entries.start, entries.stop)))


def _u64(value: int) -> Any:
    return _ENTRY.type(value)

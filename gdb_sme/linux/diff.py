# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two snapshots: the answer of `sme diff`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from gdb_sme.core.ranges import Attributes, MappedRange
from gdb_sme.core.scan import TableUse
from gdb_sme.linux.snapshot import Snapshot


class Kind(Enum):
    """Kinds of change, in the order of their weight."""

    C_BIT = "c-bit"
    PERMISSIONS = "permissions"
    MAPPED = "mapped"
    UNMAPPED = "unmapped"
    MOVED = "moved"
    MEMORY_TYPE = "memory-type"
    PAGE_SIZE = "page-size"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Change:
    """Memory whose mapping changed in one way all over.

    Attributes:
        kinds: what changed.
        va: first virtual address.
        size: in bytes.
        before: how it was mapped, its physical address that of ``va``; None for unmapped.
        after: how it is mapped now, likewise.
    """

    kinds: tuple[Kind, ...]
    va: int
    size: int
    before: MappedRange | None
    after: MappedRange | None

    @property
    def end(self) -> int:
        """First virtual address behind it."""
        return self.va + self.size


@dataclass(frozen=True, slots=True)
class TableChange:
    """A place of the tables that changed.

    Attributes:
        va: first virtual address that the table translates.
        level: what the table's entries are.
        before: the table there, None for none.
        after: the table there now, None likewise.
    """

    va: int
    level: str
    before: TableUse | None
    after: TableUse | None

    @property
    def c_bit(self) -> bool:
        """Whether the C-bit of the entry that points to it changed."""
        if self.before is None or self.after is None:
            return False
        return self.before.encrypted != self.after.encrypted


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference of two snapshots.

    Attributes:
        before: the first.
        after: the second.
        changes: by virtual address.
        tables: by virtual address.
    """

    before: Snapshot
    after: Snapshot
    changes: tuple[Change, ...]
    tables: tuple[TableChange, ...]

    def bytes_of(self, kind: Kind) -> int:
        """Bytes of address space that changed in this way."""
        return sum(each.size for each in self.changes if kind in each.kinds)


def diff(before: Snapshot, after: Snapshot, only: frozenset[Kind] | None = None) -> Diff:
    """Compare two snapshots; ``only``: the kinds of change that are wanted, None for all."""
    changes = _changes(before.ranges, after.ranges)
    if only is not None:
        changes = (each for each in changes if only.intersection(each.kinds))
    return Diff(before, after, tuple(changes), tuple(_tables(before.tables, after.tables)))


def _changes(before: tuple[MappedRange, ...], after: tuple[MappedRange, ...]) -> Iterator[Change]:
    """The pieces that differ, each of one range on either side."""
    left, right, at = 0, 0, 0
    while left < len(before) or right < len(after):
        old = before[left] if left < len(before) else None
        new = after[right] if right < len(after) else None
        sides = [each for each in (old, new) if each is not None]
        at = max(at, min(each.va for each in sides))
        end = min(edge for each in sides for edge in (each.va, each.end) if edge > at)
        was, now = _part(old, at, end), _part(new, at, end)
        kinds = tuple(_kinds(was, now))
        if kinds:
            yield Change(kinds, at, end - at, was, now)
        at = end
        left += old is not None and old.end <= at
        right += new is not None and new.end <= at


def _part(found: MappedRange | None, start: int, end: int) -> MappedRange | None:
    """``found`` from ``start`` to ``end``, None when it begins later."""
    if found is None or found.va > start:
        return None
    return MappedRange(start, end - start, found.pa_of(start), found.attributes)


def _kinds(old: MappedRange | None, new: MappedRange | None) -> Iterator[Kind]:
    """How two mappings of the same addresses differ."""
    if old is None:
        yield Kind.MAPPED
        return
    if new is None:
        yield Kind.UNMAPPED
        return
    was, now = old.attributes, new.attributes
    if was.encrypted != now.encrypted:
        yield Kind.C_BIT
    if was.permissions != now.permissions:
        yield Kind.PERMISSIONS
    if old.pa != new.pa:
        yield Kind.MOVED
    yield from _lesser(was, now)


def _lesser(was: Attributes, now: Attributes) -> Iterator[Kind]:
    if was.cache_index != now.cache_index:
        yield Kind.MEMORY_TYPE
    if was.page_size != now.page_size:
        yield Kind.PAGE_SIZE
    if was.global_ != now.global_:
        yield Kind.GLOBAL


def _tables(before: tuple[TableUse, ...], after: tuple[TableUse, ...]) -> Iterator[TableChange]:
    """Places where another table stands, one came or went, or its C-bit changed."""
    old = {(use.va, use.level): use for use in before}
    new = {(use.va, use.level): use for use in after}
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was is None or now is None or (was.pa, was.encrypted) != (now.pa, now.encrypted):
            yield TableChange(*key, was, now)

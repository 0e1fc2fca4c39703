# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of one table as runs: those that follow one another, or are all the same, as one.

A full table of pages that follow one another, or of 512 equal entries, is recognised by comparing
bytes; in the others each entry is looked at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache, lru_cache

from gdb_sme.core import entry as bits
from gdb_sme.core.address import PAGE_FRAME_MASK, PHYSICAL_BITS, U64
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.entry import Entry
from gdb_sme.core.paging import ENTRIES, ENTRY_SIZE, TABLE_SIZE, Level
from gdb_sme.core.ranges import Attributes
from gdb_sme.core.walk import Permissions

_ENTRY = struct.Struct("<Q")

#: What a range is made of. Accessed, Dirty, the software's bits and the protection key differ
#: from page to page without being another kind of mapping.
KEEP = (
    bits.PRESENT | bits.RW | bits.USER | bits.PWT | bits.PCD | bits.PSE | bits.GLOBAL
    | PAGE_FRAME_MASK | bits.NX
)  # fmt: skip

#: Entries of one table that follow one another: index of the first, how many, the bits of `KEEP`
#: in the first, and what each is more than the one before; 0 where all are the same.
Run = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class LevelFacts:
    """What the scan needs of a level, computed once."""

    level: Level
    span: int
    name: str
    leaf_bit: int  # the bit that makes a leaf: PRESENT where all are leaves, 0 where none is
    page_mask: int  # address bits of a leaf
    leaf_reserved: int
    pointer_reserved: int
    kind_mask: int  # the bits that say how a leaf maps its page, and whether it is one
    guard: int  # the bits of an address that a sum must not carry into: they make another entry


@lru_cache(maxsize=64)
def level_facts(
    level: Level, enc: EncryptionBit, physical_bits: int, nx_enabled: bool
) -> LevelFacts:
    """See `LevelFacts`; ``nx_enabled`` is EFER.NXE."""
    leaf, pointer = Entry(U64, level, enc), Entry(U64 & ~bits.PSE, level, enc)
    leaf_reserved = leaf.reserved(physical_bits, nx_enabled)
    return LevelFacts(
        level=level,
        span=level.span,
        name=level.name,
        leaf_bit={"always": bits.PRESENT, "pse": bits.PSE, "never": 0}[level.leaf],
        page_mask=leaf.address_mask,
        leaf_reserved=leaf_reserved,
        pointer_reserved=(leaf if level.leaf == "never" else pointer).reserved(
            physical_bits, nx_enabled
        ),
        kind_mask=U64 & ~leaf.address_mask | leaf_reserved,
        guard=enc.mask | leaf_reserved & PAGE_FRAME_MASK | 1 << PHYSICAL_BITS,
    )


@cache
def attributes_of(level: Level, enc: EncryptionBit, kind: int) -> Attributes:
    """How a leaf maps its page: ``kind`` is what of it is in `KEEP` and is no address, with the
    rights of all levels. One object for each kind."""
    entry = Entry(kind, level, enc)
    return Attributes(
        page_size=level.span,
        permissions=Permissions(bool(kind & bits.RW), bool(kind & bits.USER), not kind & bits.NX),
        encrypted=entry.encrypted,
        global_=bool(kind & bits.GLOBAL),
        cache_index=entry.cache_index,
    )


class TableRuns:
    """Finds the runs of one table after the other."""

    def __init__(self) -> None:
        self._templates: dict[int, _Template] = {}

    def of(self, data: bytes, facts: LevelFacts) -> list[Run]:
        """The present entries of a table, as runs."""
        (first,) = _ENTRY.unpack_from(data)
        if first & facts.leaf_bit and first & bits.PRESENT:
            (last,) = _ENTRY.unpack_from(data, TABLE_SIZE - ENTRY_SIZE)
            step = facts.span
            if last - first == (ENTRIES - 1) * step and not first & (ENTRIES - 1) * step:
                # All bits of the index are zero in the first address, so that no sum carries.
                template = self._templates.get(step)
                if template is None:
                    template = self._templates[step] = _Template(step)
                if template.matches(data, first):
                    return [(0, ENTRIES, first & KEEP, step)]
        if data == data[:ENTRY_SIZE] * ENTRIES:
            return [(0, ENTRIES, first & KEEP, 0)] if first & bits.PRESENT else []
        return _find_runs(data, facts.leaf_bit, facts.span, facts.guard)


def clip(run: Run, first: int, last: int) -> tuple[Run, ...]:
    """The part of ``run`` from index ``first`` to ``last``, the last not included."""
    at, length, raw, step = run
    index, stop = max(at, first), min(at + length, last)
    if index >= stop:
        return ()
    return ((index, stop - index, raw + (index - at) * step, step),)


def _find_runs(data: bytes, leaf_bit: int, span: int, guard: int) -> list[Run]:
    """The present entries of a table as runs, one look at each entry.

    Near an address at which a bit of ``guard`` changes each is a run by itself: a sum that carries
    into the C-bit, or out of the address, makes an entry of another kind.
    """
    low, high = _used(data)
    keep, present = KEEP, bits.PRESENT
    runs: list[Run] = []
    # first and step are of the run from ``start``; following is the entry that would continue it.
    start, first, step, following = low, 0, 0, -1
    entries = _numbers(high - low).unpack_from(data, low * ENTRY_SIZE)
    for index, raw in enumerate(entries, low):
        if raw == following:
            following += step
            continue
        key = raw & keep
        if following >= 0 and key == following & keep:
            following = raw + step
        elif key == first and first and index - start == 1:
            following, step = raw, 0
        else:
            if first:
                runs.append((start, index - start, first, step))
            if key & present:
                start, first = index, key
                step = span if key & leaf_bit else 0
                following = -1 if (key ^ key + ENTRIES * step) & guard else raw + step
            else:
                first = step = 0
                following = raw
    if first:
        runs.append((start, high - start, first, step))
    return runs


def _used(data: bytes) -> tuple[int, int]:
    """First entry of a table that is not zero, and the one behind the last such entry."""
    low, high, size = 0, ENTRIES, ENTRIES // 2
    while size:
        zeros, half = _ZEROS[size], size * ENTRY_SIZE
        if data.startswith(zeros, low * ENTRY_SIZE, low * ENTRY_SIZE + half):
            low += size
        if data.startswith(zeros, high * ENTRY_SIZE - half, high * ENTRY_SIZE):
            high -= size
        size //= 2
    return low, max(low, high)


_ZEROS = {1 << bit: bytes(ENTRY_SIZE << bit) for bit in range(ENTRIES.bit_length() - 1)}


@lru_cache(maxsize=ENTRIES)
def _numbers(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q")


class _Template:
    """A table of pages that follow one another, with the same flags in every entry.

    Kept as bytes and moved to another first entry by overwriting only the columns (byte N of every
    entry) that differ: comparing it with a table is some twenty times faster than looking at 512
    numbers.

    Args:
        step: bytes from one page to the next.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._first = bytes(ENTRY_SIZE)
        self._table = bytearray(TABLE_SIZE)
        self._move(bytes(ENTRY_SIZE), range(ENTRY_SIZE))

    def matches(self, data: bytes, first: int) -> bool:
        """Whether ``data`` is entry ``first`` and 511 more, ``step`` bytes after one another.

        The nine bits of ``first`` that count the entries must be zero.
        """
        wanted = first.to_bytes(ENTRY_SIZE, "little")
        if wanted != self._first:
            self._move(wanted, [n for n in range(ENTRY_SIZE) if wanted[n] != self._first[n]])
        return data == self._table

    def _move(self, wanted: bytes, columns: range | list[int]) -> None:
        for number in columns:
            self._table[number::ENTRY_SIZE] = _column(self._step, number, wanted[number])
        self._first = wanted


@lru_cache(maxsize=4096)
def _column(step: int, number: int, value: int) -> bytes:
    """Byte ``number`` of all entries of a template whose first entry has ``value`` there."""
    return bytes(value | index * step >> 8 * number & 0xFF for index in range(ENTRIES))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of PTEs by the hundred, with NumPy: the part of a scan that takes the time where much is
mapped in 4 KiB pages.

All tables below one PMD table are gathered from mapped memory and compared as whole arrays; Python
sees runs of pages only. `gdb_sme.core.scan` imports this where it pays, does without where there is
no NumPy, and looks itself at what is left out here: loops, tables outside of mapped memory, pages
that repeat, reserved bits. What comes out is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdb_sme.core import entry as bits
from gdb_sme.core.address import PAGE_FRAME_MASK, PAGE_SHIFT, PAGE_SIZE, PHYSICAL_BITS
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import ENTRIES, TABLE_SIZE
from gdb_sme.core.ports import MappedPart

#: Tables below one PMD table for which arrays are quicker than one table after the other.
LEAST = 16

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

_Array = Any  # numpy.ndarray, whose generic parameters differ between NumPy 1 and 2


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of PTEs below one PMD table, and what they map; arrays of equal length.

    Attributes:
        taken: for each of the 512 entries of the PMD table whether its table is among these.
        rest: whether the PMD table has other present entries.
        flags: RW, USER and NX, which all entries to these tables have alike.
        indexes: which entries of the PMD table, ascending.
        raws: those entries.
        encrypted: whether they make the processor read the tables encrypted.
        pas: the tables' physical addresses.
        empty: whether all entries of a table are zero.
        starts: first page of each run, counted from the first that the PMD table can map.
        lengths: pages in it.
        keys: the PTE of its first page without Accessed, Dirty and what is not the hardware's.
        near: whether a run may continue the one before it, in spite of other flags.
    """

    taken: _Array
    rest: bool
    flags: int
    indexes: _Array
    raws: _Array
    pas: _Array
    encrypted: _Array
    empty: _Array
    starts: _Array
    lengths: _Array
    keys: _Array
    near: _Array


class TableReader:
    """Looks at the tables of PTEs in mapped memory.

    Args:
        parts: memory that is mapped in this process, not overlapping.
        enc: the encryption bit in force.
        keep: the bits of a PTE that make a mapping, address included.
        pointer_reserved: bits that must be zero in an entry that points to a table of PTEs.
        leaf_reserved: bits that must be zero in a PTE.
    """

    def __init__(
        self,
        parts: Sequence[MappedPart],
        enc: EncryptionBit,
        *,
        keep: int,
        pointer_reserved: int,
        leaf_reserved: int,
    ) -> None:
        self._parts = [
            (
                each.physical.start,
                each.physical.start + each.physical.size // TABLE_SIZE * TABLE_SIZE,
                np.frombuffer(
                    each.content, _ENTRY, each.physical.size // TABLE_SIZE * ENTRIES
                ).reshape(-1, ENTRIES),
            )
            for each in parts
            if not each.physical.start % TABLE_SIZE
        ]
        self._keep = keep
        self._pointer = bits.PRESENT | bits.PSE | pointer_reserved
        self._address = PAGE_FRAME_MASK & ~enc.mask
        self._reserved = leaf_reserved
        # A sum must not carry into what is no address, nor from address bit 51 into bit 52.
        self._guard = enc.mask | leaf_reserved & PAGE_FRAME_MASK | 1 << PHYSICAL_BITS
        self._enc = enc

    def look(self, data: bytes, path: Sequence[int]) -> Tables | None:
        """What the tables below the PMD table ``data`` map, None when that is left to the caller.

        Args:
            data: its content.
            path: physical addresses of it and the tables above it.
        """
        entries = np.frombuffer(data, _ENTRY)
        pointers = self._plain_pointers(entries, path)
        indexes = pointers.nonzero()[0]
        if len(indexes) < LEAST:
            return None
        pas = entries[indexes] & self._address
        starts, lengths, keys, empty = self._runs(pas)
        wrong = self._left_out(starts, lengths, keys)
        if wrong.any():
            good = np.ones(len(indexes), bool)
            good[starts[wrong] >> _INDEX_BITS] = False
            pointers[indexes[~good]] = False
            runs = good[starts >> _INDEX_BITS]
            starts, lengths, keys = starts[runs], lengths[runs], keys[runs]
            starts = indexes[starts >> _INDEX_BITS] * ENTRIES + (starts & _INDEX)
            indexes, pas, empty = indexes[good], pas[good], empty[good]
        else:
            starts = indexes[starts >> _INDEX_BITS] * ENTRIES + (starts & _INDEX)
        starts, lengths, keys = self._join(starts, lengths, keys)
        near = np.zeros(len(starts), bool)
        if len(starts) > 1:
            before, after = keys[:-1] & self._address, keys[1:] & self._address
            near[1:] = (starts[1:] == starts[:-1] + lengths[:-1]) & (
                (after == before) | (after == before + _bytes(lengths[:-1]))
            )
        raws = entries[indexes]
        return Tables(
            taken=pointers,
            rest=bool(np.count_nonzero(entries & bits.PRESENT) > len(indexes)),
            flags=int(raws[0]) & _RIGHTS if len(indexes) else 0,
            indexes=indexes,
            raws=raws,
            pas=pas,
            encrypted=self._encrypted(raws),
            empty=empty,
            starts=starts,
            lengths=lengths,
            keys=keys,
            near=near,
        )

    def _plain_pointers(self, entries: _Array, path: Sequence[int]) -> _Array:
        """Which entries point to a table in mapped memory that has nothing particular about it."""
        plain = entries & self._pointer == bits.PRESENT
        keys, pas = entries & self._keep, entries & self._address
        repeated = keys[1:] == keys[:-1]
        plain[1:] &= ~repeated
        plain[:-1] &= ~repeated
        mapped = np.zeros(ENTRIES, bool)
        for start, end, _ in self._parts:
            mapped |= (pas >= start) & (pas < end)
        plain &= mapped
        for pa in path:
            plain &= pas != pa
        first = int(plain.argmax())
        plain &= entries & _RIGHTS == entries[first] & _RIGHTS
        return plain

    def _encrypted(self, raws: _Array) -> _Array:
        if not self._enc.mask:
            return np.zeros(len(raws), bool)
        return (raws & self._enc.mask != 0) == self._enc.set_is_encrypted

    def _runs(self, pas: _Array) -> tuple[_Array, _Array, _Array, _Array]:
        """Pages of the tables ``pas`` that follow one another within a table.

        Returns the first page of each run, how many there are and the key of the first; and for
        each table whether it is empty.
        """
        all_starts, all_keys = [], []
        for first, tables in self._gather(pas):
            flat = tables.reshape(-1)
            steps, breaks = _STEPS[: len(flat)], _BREAKS[: len(flat)]
            np.subtract(flat[1:], flat[:-1], out=steps[1:])
            np.not_equal(steps, PAGE_SIZE, out=breaks)
            breaks[::ENTRIES] = True
            starts = breaks.nonzero()[0]
            all_keys.append(flat[starts])
            starts += first * ENTRIES
            all_starts.append(starts)
        starts, keys = np.concatenate(all_starts), np.concatenate(all_keys)
        keys &= self._keep
        lengths = np.empty(len(starts), np.intp)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1] = len(pas) * ENTRIES - starts[-1]
        empty = np.zeros(len(pas), bool)
        present = keys & bits.PRESENT != 0
        if not present.all():
            starts, lengths, keys = starts[present], lengths[present], keys[present]
            empty[:] = True
            empty[starts >> _INDEX_BITS] = False
            empty[empty] = self._are_empty(pas[empty])
        inner = starts[1:] & _INDEX != 0
        if inner.any():
            # The raw entries were compared: Accessed and Dirty, say, make no other mapping.
            inner &= starts[1:] == starts[:-1] + lengths[:-1]
            inner &= keys[1:] == keys[:-1] + _bytes(lengths[:-1])
            starts, lengths, keys = _merge(starts, lengths, keys, inner)
        return starts, lengths, keys, empty

    def _gather(self, pas: _Array) -> Iterator[tuple[int, _Array]]:
        """The tables at ``pas``, some at a time, each time with the number of the first."""
        parts = [each for each in self._parts if ((pas >= each[0]) & (pas < each[1])).any()]
        start, _, pages = parts[0]
        rows = ((pas - start) >> PAGE_SHIFT).astype(np.intp)
        apart = rows[1:] - rows[:-1] != 1
        for first in range(0, len(pas), _AT_ONCE):
            here = rows[first : first + _AT_ONCE]
            out = _TABLES[: len(here)]
            if len(parts) > 1:
                yield first, self._mixed(pas[first : first + _AT_ONCE], parts, out)
            elif apart[first : first + len(here) - 1].any():
                # No row is out of bounds: "clip" only keeps NumPy from buffering.
                yield first, pages.take(here, axis=0, out=out, mode="clip")
            else:
                yield first, pages[here[0] : here[0] + len(here)]

    @staticmethod
    def _mixed(pas: _Array, parts: Sequence[tuple[int, int, _Array]], out: _Array) -> _Array:
        """The tables at ``pas`` from several parts of memory, in ``out``."""
        for start, end, pages in parts:
            inside = (pas >= start) & (pas < end)
            out[inside] = pages[((pas[inside] - start) >> PAGE_SHIFT).astype(np.intp)]
        return out

    def _are_empty(self, pas: _Array) -> _Array:
        """For each of ``pas`` whether all entries of the table are zero."""
        some = [~tables.any(axis=1) for _, tables in self._gather(pas)] if len(pas) else []
        return np.concatenate(some) if some else np.empty(0, bool)

    def _left_out(self, starts: _Array, lengths: _Array, keys: _Array) -> _Array:
        """Which runs are left to the caller, with all of their table."""
        wrong = (keys ^ keys + _bytes(lengths - 1)) & self._guard != 0
        if self._reserved:
            wrong |= keys & self._reserved != 0
        repeats = (keys[1:] == keys[:-1]) & (lengths[:-1] == 1)
        if repeats.any():
            wrong[:-1] |= repeats & (starts[1:] == starts[:-1] + 1) & (starts[1:] & _INDEX != 0)
        return wrong

    def _join(self, starts: _Array, lengths: _Array, keys: _Array) -> tuple[_Array, _Array, _Array]:
        """Runs that continue from one table to the next put together."""
        linked = (
            (starts[1:] == starts[:-1] + lengths[:-1])
            & (keys[1:] == keys[:-1] + _bytes(lengths[:-1]))
            & ((keys[1:] ^ keys[:-1]) & (self._guard | ~self._address & self._keep) == 0)
        )
        return _merge(starts, lengths, keys, linked)


def _bytes(pages: _Array) -> _Array:
    return pages.astype(_ENTRY) * _PAGE


_PAGE = _ENTRY.type(PAGE_SIZE)


def _merge(
    starts: _Array, lengths: _Array, keys: _Array, linked: _Array
) -> tuple[_Array, _Array, _Array]:
    """Runs with each that is ``linked`` to the one before it added to that."""
    if not linked.any():
        return starts, lengths, keys
    heads = np.flatnonzero(np.concatenate(([True], ~linked)))
    return starts[heads], np.add.reduceat(lengths, heads), keys[heads]

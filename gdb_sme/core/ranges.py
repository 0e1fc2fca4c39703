# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of mapped memory: pages that follow one another and are mapped alike, as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from gdb_sme.core.ports import Range
from gdb_sme.core.walk import Permissions


@dataclass(frozen=True, slots=True)
class Attributes:
    """How the pages of a range are mapped. One object serves every range that is mapped so.

    Attributes:
        page_size: 4096, 2 MiB or 1 GiB, in bytes.
        permissions: combined over the levels.
        encrypted: whether the pages are reached encrypted: the leaf's bit alone decides.
        global_: GLOBAL in the leaf.
        cache_index: index of the leaf into the PAT MSR, 0 to 7.
        repeated: whether every page of the range is the same physical page (the zero page, say).
    """

    page_size: int
    permissions: Permissions
    encrypted: bool
    global_: bool
    cache_index: int
    repeated: bool = False


@lru_cache(maxsize=1024)
def as_repeated(attributes: Attributes) -> Attributes:
    """The same attributes for a range of one physical page."""
    return replace(attributes, repeated=True)


class MappedRange(NamedTuple):
    """A range of pages, contiguous both virtually and physically, mapped alike.

    Attributes:
        va: first virtual address.
        size: in bytes, a multiple of the page size.
        pa: physical address of the first page, without encryption bit.
        attributes: how it is mapped.
    """

    va: int
    size: int
    pa: int
    attributes: Attributes

    @property
    def end(self) -> int:
        """First virtual address after the range."""
        return self.va + self.size

    @property
    def page_count(self) -> int:
        """Number of pages, in the page size of the range."""
        return self.size // self.attributes.page_size

    @property
    def physical(self) -> Range:
        """The physical memory that is mapped: one page of it in a repeated range."""
        size = self.attributes.page_size if self.attributes.repeated else self.size
        return Range(self.pa, self.pa + size)

    def pa_of(self, va: int) -> int:
        """Physical address of ``va``, an address in the range."""
        offset = va - self.va
        return self.pa + (offset % self.attributes.page_size if self.repeated else offset)

    def va_of(self, pa: int) -> int:
        """First virtual address that is mapped to ``pa``, an address in `physical`."""
        return self.va + pa - self.pa

    @property
    def repeated(self) -> bool:
        """Whether every page is the same physical page."""
        return self.attributes.repeated

    def pages(self) -> Iterator[tuple[int, int]]:
        """Virtual and physical address of every page, in address order."""
        step = self.attributes.page_size
        physical = 0 if self.attributes.repeated else step
        for number in range(self.page_count):
            yield self.va + number * step, self.pa + number * physical


class Conflict(NamedTuple):
    """Physical memory that is mapped both encrypted and not.

    Attributes:
        physical: the memory.
        encrypted: the ranges that map it encrypted, by virtual address.
        unencrypted: the ranges that map it without encryption.
    """

    physical: Range
    encrypted: tuple[MappedRange, ...]
    unencrypted: tuple[MappedRange, ...]


def views(ranges: Iterable[MappedRange], physical: Range) -> tuple[MappedRange, ...]:
    """The ranges that map some of ``physical``, in the order given."""
    return tuple(
        each
        for each in ranges
        if each.pa < physical.end and physical.start < each.physical.end
    )  # fmt: skip


def conflicts(ranges: Iterable[MappedRange]) -> tuple[Conflict, ...]:
    """Physical memory that is mapped both ways, lowest address first, merged where it continues.

    One pass over the ends of the ranges in physical order: the time grows with the number of
    ranges and of overlaps, not with the size of memory.
    """
    edges: list[tuple[int, int, int]] = []
    known = list(ranges)
    for number, each in enumerate(known):
        physical = each.physical
        edges.append((physical.start, 1, number))
        edges.append((physical.end, 0, number))
    edges.sort()
    open_ = {True: set[int](), False: set[int]()}
    found: list[tuple[int, int, frozenset[int], frozenset[int]]] = []
    since = 0
    for position, begins, number in edges:
        if open_[True] and open_[False] and position > since:
            pieces = frozenset(open_[True]), frozenset(open_[False])
            if found and found[-1][1] == since and found[-1][2:] == pieces:
                found[-1] = (found[-1][0], position, *pieces)
            else:
                found.append((since, position, *pieces))
        since = position
        side = open_[known[number].attributes.encrypted]
        if begins:
            side.add(number)
        else:
            side.discard(number)
    return tuple(
        Conflict(
            Range(start, end),
            tuple(known[number] for number in sorted(encrypted)),
            tuple(known[number] for number in sorted(unencrypted)),
        )
        for start, end, encrypted, unencrypted in found
    )

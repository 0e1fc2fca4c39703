# SPDX-License-Identifier: GPL-2.0-or-later
"""Every virtual address of some physical memory, and memory mapped both ways: `sme find`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gdb_sme.core.address import PAGE_SIZE, align_down
from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.ports import Range
from gdb_sme.core.ranges import MappedRange, conflicts, views
from gdb_sme.core.scan import Scan
from gdb_sme.errors import ReadError
from gdb_sme.linux import exceptions
from gdb_sme.linux.dump import Place, Places
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.translate import Root

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class View:
    """One virtual address of a piece of physical memory.

    Attributes:
        va: the address of its first byte.
        mapped: the range of pages that it is in.
        place: where in the kernel's layout.
        note: why it is not encrypted by design; None when it is encrypted, or nothing explains it.
    """

    va: int
    mapped: MappedRange
    place: Place
    note: str | None

    @property
    def encrypted(self) -> bool:
        """Whether the memory is reached encrypted through this address."""
        return self.mapped.attributes.encrypted


@dataclass(frozen=True, slots=True)
class Found:
    """Physical memory and every view of it.

    Attributes:
        physical: the memory.
        views: by virtual address.
    """

    physical: Range
    views: tuple[View, ...]

    @property
    def conflict(self) -> bool:
        """Whether it is mapped both encrypted and not."""
        return len({view.encrypted for view in self.views}) == 2

    @property
    def by_design(self) -> str | None:
        """Why every view that is not encrypted is so by design; None when one is not explained."""
        notes = {view.note for view in self.views if not view.encrypted}
        return None if None in notes else "; ".join(sorted(note for note in notes if note)) or None


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to a search.

    Attributes:
        what: what was looked for, in words.
        root: the root that was scanned.
        scan: the scan.
        found: one for each physical place, lowest first.
        c_bit: letter of the column for the encryption bit.
        more: whether there are more places than were asked for.
    """

    what: str
    root: Root
    scan: Scan
    found: tuple[Found, ...]
    c_bit: str
    more: bool = False


def find_physical(
    kernel: Kernel, cpu: CpuState, scanned: Scan, wanted: Iterable[Range]
) -> tuple[Found, ...]:
    """Every view of each range of physical memory."""
    places = Places(kernel, cpu)
    return tuple(
        Found(
            physical,
            tuple(
                _view(kernel, places, each, physical) for each in views(scanned.ranges, physical)
            ),
        )
        for physical in wanted
    )


def find_conflicts(kernel: Kernel, cpu: CpuState, scanned: Scan) -> tuple[Found, ...]:
    """All physical memory that is mapped both encrypted and not."""
    places = Places(kernel, cpu)
    found = []
    for each in conflicts(scanned.ranges):
        ranges = sorted((*each.encrypted, *each.unencrypted))
        seen = tuple(_view(kernel, places, one, each.physical) for one in ranges)
        found.append(Found(each.physical, seen))
    return tuple(found)


def search(
    kernel: Kernel,
    pattern: bytes,
    most: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, ...]:
    """Physical addresses at which ``pattern`` stands in RAM, lowest first, at most ``most``.

    Args:
        kernel: the kernel, whose memory is searched.
        pattern: at least one byte.
        most: how many to find.
        progress: called with a physical address for every part that is read.
    """
    found: list[int] = []
    memory = kernel.memory
    for ram in memory.ram:
        tail = b""
        for at in range(ram.start, ram.end, _CHUNK):
            if progress is not None:
                progress(at)
            try:
                data = tail + memory.read(at, min(_CHUNK, ram.end - at))
            except ReadError:
                tail = b""  # what looks like memory to QEMU's monitor and is none
                continue
            base = at - len(tail)
            place = data.find(pattern)
            while place >= 0:
                found.append(base + place)
                if len(found) == most:
                    return tuple(found)
                place = data.find(pattern, place + 1)
            tail = data[len(data) - len(pattern) + 1 :] if len(pattern) > 1 else b""
    return tuple(found)


def page_of(pa: int, length: int) -> Range:
    """The physical memory to look for: ``length`` bytes at ``pa``, but no more than their page."""
    return Range(pa, min(pa + length, align_down(pa, PAGE_SIZE) + PAGE_SIZE))


def _view(kernel: Kernel, places: Places, each: MappedRange, physical: Range) -> View:
    first = max(physical.start, each.physical.start)
    va = each.va_of(first)
    note = None
    if kernel.enc.mask and not each.attributes.encrypted:
        note = next((e.reason for e in exceptions.unencrypted(kernel) if e.covers(va, first)), None)
    return View(va, each, places.find(va), note)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM mapped straight from the file or memfd that QEMU has it in, on the same machine.

Where each range of RAM lies in which file is learned from QEMU itself: the monitor's ``gpa2hva``
gives the host address, /proc/PID/maps the file and offset behind it. So the PCI hole, RAM moved to
1 TiB, and several backends need no knowledge here. What is not in a shared file (ROM, anonymous
memory) is read over the stub.
"""

from __future__ import annotations

import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from gdb_sme.core.address import PAGE_SIZE, align_down
from gdb_sme.core.ports import MappedPart, PhysMemory, Range
from gdb_sme.errors import ReadError, TargetError

#: The chipset's PAM registers decide what stands here, RAM or ROM, and firmware changes them while
#: it runs (82441FX data sheet, "Memory Shadowing"): never taken from the file.
_SHADOWED = Range(0xA0000, 0x100000)

#: Pages compared with the stub in each range before its file is trusted.
_CHECKS = 4

#: A page of zeros proves little: how far, in bytes, to look for one that holds something.
_SEARCHED = 4 << 20

_ZEROS = bytes(PAGE_SIZE)
_MAPS = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)\s*(.*)$"
)
_HOST_ADDRESS = re.compile(r"^Host virtual address for .* is (0x[0-9a-f]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FileMapping:
    """A shared file mapping of a process.

    Attributes:
        start, end: virtual addresses in that process, the end not included.
        offset: of the byte at ``start`` in the file.
        identity: (major, minor, inode) of the file.
        path: its name, as the kernel shows it.
    """

    start: int
    end: int
    offset: int
    identity: tuple[int, int, int]
    path: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of physical memory and where it lies in a file mapped here."""

    physical: Range
    offset: int
    content: mmap.mmap


class RamFile:
    """Guest physical memory from QEMU's own pages; what they do not hold, from ``fallback``.

    The mappings go with the reader.

    Args:
        segments: lowest physical address first.
        fallback: a reader of everything.
        description: of the process and file, for `sme status`.
    """

    def __init__(
        self, segments: tuple[Segment, ...], fallback: PhysMemory, description: str
    ) -> None:
        self.name = f"guest RAM mapped from {description}, checked against the stub"
        self._segments = segments
        self._starts = [segment.physical.start for segment in segments]
        self._fallback = fallback

    @property
    def mapped(self) -> tuple[MappedPart, ...]:
        """See `gdb_sme.core.ports.mapped_parts`."""
        return tuple(
            MappedPart(each.physical, memoryview(each.content)[each.offset :][: each.physical.size])
            for each in self._segments
        )

    @property
    def ram(self) -> tuple[Range, ...]:
        """Ranges of RAM and ROM without second views, lowest first."""
        return self._fallback.ram

    def read(self, pa: int, length: int) -> bytes:
        """See `gdb_sme.core.ports.PhysMemory.read`."""
        number = bisect_right(self._starts, pa) - 1
        if number >= 0:
            segment = self._segments[number]
            if pa + length <= segment.physical.end:
                at = pa - segment.physical.start + segment.offset
                return segment.content[at : at + length]
        return self._fallback.read(pa, length)

    def batch(self) -> AbstractContextManager[None]:
        """Nothing to set up."""
        return nullcontext()


def open_ram(
    stub: PhysMemory, processes: Iterator[int], monitor: Callable[[str], str]
) -> RamFile | None:
    """A reader of guest RAM through QEMU's file, None when there is no way to it.

    Args:
        stub: the reader that the file is checked against; it must be the same guest's.
        processes: ids of processes, one of which may be QEMU.
        monitor: runs a command of QEMU's monitor and returns its output.
    """
    wanted = tuple(part for each in stub.ram for part in _pieces(each))

    @cache
    def host_address(pa: int) -> int | None:
        match = _HOST_ADDRESS.search(monitor(f"gpa2hva {pa:#x}"))
        return int(match[1], 16) if match else None

    for pid in processes:
        # TargetError: no monitor, or one without gpa2hva (before QEMU 2.10).
        with suppress(OSError, ReadError, TargetError):
            segments = tuple(_segments(pid, wanted, host_address, stub))
            if segments:
                paths = sorted({path for _, path in segments})
                name = f"QEMU's memory (process {pid}, {', '.join(paths)})"
                return RamFile(tuple(segment for segment, _ in segments), stub, name)
    return None


def _pieces(whole: Range) -> Iterator[Range]:
    """``whole`` without what the chipset shadows, cut where firmware ends and high RAM begins."""
    edges = (0, _SHADOWED.start, _SHADOWED.end, 1 << 32, 1 << 64)
    for first, last in pairwise(edges):
        start, end = max(whole.start, first), min(whole.end, last)
        if start < end and first != _SHADOWED.start:
            yield Range(start, end)


def _segments(
    pid: int,
    wanted: tuple[Range, ...],
    host_address: Callable[[int], int | None],
    stub: PhysMemory,
) -> Iterator[tuple[Segment, str]]:
    """The parts of ``wanted`` that process ``pid`` has in files, checked, with the file's name.

    Raises:
        OSError: the process is gone, or not to be looked into.
        ReadError: the stub cannot read what it calls RAM.
        TargetError: QEMU does not tell where memory is.
    """
    mappings = parse_maps(Path(f"/proc/{pid}/maps").read_text())
    opened: dict[tuple[int, int, int], mmap.mmap | None] = {}
    for each in wanted:
        start = each.start
        while start < each.end:
            host = host_address(start)
            behind = next((m for m in mappings if host and m.start <= host < m.end), None)
            if host is None or behind is None:
                break
            # Where one file ends another may follow: several backends side by side.
            part = Range(start, min(each.end, start + behind.end - host))
            start = part.end
            if behind.identity not in opened:
                opened[behind.identity] = _map_file(pid, behind.identity)
            content = opened[behind.identity]
            offset = host - behind.start + behind.offset
            if content is not None and offset + part.size <= len(content):
                segment = Segment(part, offset, content)
                if _agrees(segment, stub):
                    yield segment, behind.path


def parse_maps(text: str) -> tuple[FileMapping, ...]:
    """The shared file mappings in /proc/PID/maps (proc(5))."""
    found = []
    for line in text.splitlines():
        match = _MAPS.match(line)
        if match is None or match[3][3] != "s":
            continue  # a private mapping is QEMU's copy, the file does not have it
        start, end, offset, major, minor = (int(match[n], 16) for n in (1, 2, 4, 5, 6))
        found.append(FileMapping(start, end, offset, (major, minor, int(match[7])), match[8]))
    return tuple(found)


def _map_file(pid: int, identity: tuple[int, int, int]) -> mmap.mmap | None:
    """Map the file that process ``pid`` has open with this identity, for reading."""
    directory = Path(f"/proc/{pid}/fd")
    for link in directory.iterdir():
        with suppress(OSError):
            known = link.stat()
            if (os.major(known.st_dev), os.minor(known.st_dev), known.st_ino) != identity:
                continue
            descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
    return None


def _agrees(segment: Segment, stub: PhysMemory) -> bool:
    """Whether file and stub hold the same: first and last page, and others that hold something."""
    physical, content = segment.physical, segment.content
    first, last = segment.offset, segment.offset + physical.size - PAGE_SIZE
    places = {first, last}
    for number in range(_CHECKS):
        begin = first + align_down(number * physical.size // _CHECKS, PAGE_SIZE)
        some = range(begin, min(begin + _SEARCHED, last), PAGE_SIZE)
        places.add(next((at for at in some if content[at : at + PAGE_SIZE] != _ZEROS), begin))
    with stub.batch():
        return all(
            content[at : at + PAGE_SIZE] == stub.read(physical.start + at - first, PAGE_SIZE)
            for at in sorted(places)
        )

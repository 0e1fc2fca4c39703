# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU's guest has RAM, from the monitor's ``info mtree -f``.

The rendered view of address space "memory" is what the CPUs see. RAM that stands there a second
time at ``1 << C-bit`` (see docs/emulation.md) is told apart from the RAM itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gdb_sme.core.ports import Range

#: Where AMD's C-bit can be: 43 is the lowest this project emulates, 51 the highest address bit.
C_BITS = range(43, 52)

_VIEW = re.compile(r"^FlatView #\d+", re.MULTILINE)
_REGION = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|romd|nv-ram|nv-rom)\): (.*)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class RamMap:
    """RAM and ROM of a guest.

    Attributes:
        ram: ranges of physical addresses backed by memory, lowest first, without second views.
        second_views: encryption bit position to the ranges that are seen again at that bit.
    """

    ram: tuple[Range, ...]
    second_views: dict[int, tuple[Range, ...]]


def parse_mtree(text: str) -> RamMap:
    """Read the output of ``info mtree -f``; an empty map when there is no view of memory."""
    view = next(
        (part for part in _VIEW.split(text) if re.search(r'^ AS "memory"', part, re.MULTILINE)), ""
    )
    ranges: list[Range] = []
    for start, end, _kind, _name in _REGION.findall(view):
        first, last = int(start, 16), int(end, 16) + 1
        if ranges and ranges[-1].end == first:
            ranges[-1] = Range(ranges[-1].start, last)
        else:
            ranges.append(Range(first, last))
    views: dict[int, list[Range]] = {}
    ram = []
    for candidate in ranges:
        bit = candidate.start.bit_length() - 1
        if bit in C_BITS:
            # The low end need not be RAM: a view of upper RAM shows its file from the first byte.
            start = candidate.start & ~(1 << bit)
            seen = Range(start, start + candidate.size)
            if any(seen.start < other.end and other.start < seen.end for other in ranges):
                views.setdefault(bit, []).append(seen)
                continue
        ram.append(candidate)
    return RamMap(tuple(ram), {bit: tuple(seen) for bit, seen in views.items()})

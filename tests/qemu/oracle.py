# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest maps, told twice without the code under test.

Once by QEMU's own ``info tlb``, once by a walker of 30 lines over the bytes of the guest's RAM.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gdb_sme.harness.boot import Session
from gdb_sme.harness.kgdb import KgdbSession

#: The address bits that QEMU 7.2 prints (target/i386/monitor.c, print_pte and its callers).
TLB_ADDRESS = 0x3FFFFFFFFF000

_LINE = re.compile(r"^([0-9a-f]{16}): ([0-9a-f]{16}) ([-XGPDACTUW]{9})$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """A page: its leaf entry as it stands, and the rights of all levels combined."""

    va: int
    size: int
    raw: int
    write: bool
    user: bool
    execute: bool

    def pa(self, c_mask: int) -> int:
        return self.raw & 0x000FFFFFFFFFF000 & ~(self.size - 1) & ~c_mask

    def tlb(self) -> tuple[int, int, str]:
        """The line of ``info tlb``: address, physical address, flags."""
        bits = ("X", 63), ("G", 8), ("P", 7), ("D", 6), ("A", 5), ("C", 4), ("T", 3), ("U", 2)
        flags = "".join(
            letter if self.raw >> bit & 1 and not (letter == "P" and self.size == 4096) else "-"
            for letter, bit in (*bits, ("W", 1))
        )
        return self.va, self.raw & TLB_ADDRESS & ~(self.size - 1), flags


def info_tlb(session: Session | KgdbSession) -> list[tuple[int, int, str]]:
    """Every line of ``info tlb``, by address."""
    text = session.machine.qmp.hmp("info tlb")
    found = [(int(va, 16), int(pa, 16), flags) for va, pa, flags in _LINE.findall(text)]
    assert len(found) == len(text.splitlines()), "a line was not understood"
    return found


class Ram:
    """The guest's RAM, from the memfd that the harness made for it."""

    def __init__(self, session: Session) -> None:
        self._parts = session.machine.layout.parts
        self._fd = session.machine.ram_fd

    def read(self, pa: int, length: int) -> bytes | None:
        for part in self._parts:
            if part.pa <= pa and pa + length <= part.pa + part.size:
                return os.pread(self._fd, length, part.offset + pa - part.pa)
        return None

    def write(self, pa: int, data: bytes) -> None:
        for part in self._parts:
            if part.pa <= pa < part.pa + part.size:
                os.pwrite(self._fd, data, part.offset + pa - part.pa)


def walk(ram: Ram, root: int, levels: int, c_mask: int) -> Iterator[Page]:
    """Every page, by address (APM volume 2, sections 5.3 and 5.6)."""

    def table(pa: int, level: int, base: int, rights: tuple[bool, bool, bool]) -> Iterator[Page]:
        data = ram.read(pa, 4096)
        if data is None:
            return
        shift = 12 + 9 * level
        for index, raw in enumerate(struct.unpack("<512Q", data)):
            if not raw & 1:
                continue
            va = base + (index << shift)
            if level == levels - 1 and index >= 256:
                va += (1 << 64) - (512 << shift)
            combined = (
                rights[0] and bool(raw & 2),
                rights[1] and bool(raw & 4),
                rights[2] and not raw >> 63,
            )
            if level == 0 or (level < 3 and raw & 0x80):
                yield Page(va, 1 << shift, raw, *combined)
            else:
                address = raw & 0x000FFFFFFFFFF000 & ~c_mask
                yield from table(address, level - 1, va, combined)

    yield from table(root, levels - 1, 0, (True, True, True))

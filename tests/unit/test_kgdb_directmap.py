# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory over virtual reads, on a kernel made of data."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from gdb_sme.core.ports import Range
from gdb_sme.errors import ReadError, TargetError
from gdb_sme.linux.directmap import DirectMapMemory
from tests.fakes import FakeSymbols

KM = 0xFFFFFFFF80000000
TEXT, SIZE = KM + 0x1000000, 0x200000
DIRECT = 0xFFFF888000000000
BUILD_ID = bytes(range(20))
SYMBOLS = {
    "_text": TEXT,
    "_end": TEXT + SIZE,
    "__start_notes": TEXT + 0x1000,
    "__stop_notes": TEXT + 0x1000 + 36,
    "phys_base": TEXT + 0x2000,
    "page_offset_base": TEXT + 0x2008,
    "__pgtable_l5_enabled": TEXT + 0x2010,
    "system_state": TEXT + 0x2018,
    "e820_table": TEXT + 0x2020,
    "idt_table": TEXT + 0x3000,
    "early_idt_handler_array": TEXT + 0x4000,
    "init_top_pgt": TEXT + 0x5000,
}
RAM = Range(0x1000, 0x10000000)


class Symbols(FakeSymbols):
    build_id = BUILD_ID.hex()


class Guest:
    """Virtual memory as the kernel has it; remembers what was read."""

    def __init__(
        self,
        *,
        koff: int = 0,
        phys_base: int = 0,
        direct: int = DIRECT,
        early: bool = False,
        levels5: bool = False,
        build_id: bytes = BUILD_ID,
    ) -> None:
        self.reads: list[tuple[int, int]] = []
        self.broken = -1
        self._parts: dict[int, bytearray] = {TEXT + koff: bytearray(SIZE)}
        self._direct = Range(direct, direct + RAM.end)
        self._koff = koff
        notes = struct.pack("<III4s", 4, 20, 3, b"GNU\0") + build_id
        handler = SYMBOLS["early_idt_handler_array"] + koff + 14 * 9 if early else KM + 0x1900000
        gate = struct.pack("<H4xHI4x", handler & 0xFFFF, handler >> 16 & 0xFFFF, handler >> 32)
        # struct e820_table, in the direct map as after e820__reallocate_tables().
        table = 0x5000
        values: Mapping[str, bytes] = {
            "__start_notes": notes,
            "phys_base": phys_base.to_bytes(8, "little"),
            "page_offset_base": direct.to_bytes(8, "little"),
            "__pgtable_l5_enabled": int(levels5).to_bytes(4, "little"),
            "e820_table": (direct + table).to_bytes(8, "little"),
        }
        for name, data in values.items():
            self.put(SYMBOLS[name] + koff, data)
        self.put(SYMBOLS["idt_table"] + koff + 14 * 16, gate)
        if not early:
            entry = struct.pack("<QQI", RAM.start, RAM.size, 1)
            self._parts[direct + table] = bytearray(struct.pack("<I", 1) + entry + bytes(8))

    def put(self, va: int, data: bytes) -> None:
        for start, part in self._parts.items():
            if start <= va < start + len(part):
                part[va - start : va - start + len(data)] = data
                return
        raise AssertionError(hex(va))

    def map(self, va: int, data: bytes) -> None:
        self._parts[va] = bytearray(data)

    def read(self, va: int, length: int) -> bytes:
        self.reads.append((va, length))
        if va <= self.broken < va + length:
            raise ReadError(va, length, "E14", "virtual")
        for start, part in self._parts.items():
            if start <= va and va + length <= start + len(part):
                return bytes(part[va - start : va - start + length])
        raise ReadError(va, length, "E14", "virtual")


def memory_of(guest: Guest) -> DirectMapMemory:
    return DirectMapMemory(guest.read, Symbols(SYMBOLS))


def test_image_and_direct_map() -> None:
    guest = Guest()
    guest.put(TEXT + 0x5000, b"\x11" * 8)
    guest.map(DIRECT + 0x7000000, b"\x22" * 8)
    memory = memory_of(guest)
    assert memory.image is not None
    assert (memory.image.va, memory.image.pa) == (TEXT, 0x1000000)
    assert memory.read(0x1005000, 8) == b"\x11" * 8
    assert memory.read(0x7000000, 8) == b"\x22" * 8
    assert memory.ram == (RAM,)


def test_moved_by_kaslr() -> None:
    """Virtual and physical offset are independent, and page_offset_base is anywhere."""
    koff, pa, direct = 0x16000000, 0x2C00000, 0xFFFF9A1D40000000
    guest = Guest(koff=koff, phys_base=pa - (TEXT + koff - KM) & (1 << 64) - 1, direct=direct)
    guest.map(direct + 0x7000000, b"\x22" * 8)
    memory = memory_of(guest)
    assert memory.image is not None
    assert (memory.image.va, memory.image.pa) == (TEXT + koff, pa)
    assert memory.image.koff == koff
    assert memory.read(0x7000000, 8) == b"\x22" * 8
    assert memory.read(pa + 0x2000, 8) == (pa - (TEXT + koff - KM) & (1 << 64) - 1).to_bytes(
        8, "little"
    )


def test_five_levels() -> None:
    direct = 0xFF11000000000000
    guest = Guest(direct=direct, levels5=True)
    guest.map(direct + 0x7000000, b"\x22" * 8)
    memory = memory_of(guest)
    assert memory.five_levels
    assert memory.read(0x7000000, 8) == b"\x22" * 8


def test_nothing_is_read_twice_at_one_stop() -> None:
    guest = Guest()
    memory = memory_of(guest)
    memory.read(0x1005000, 4096)
    before = len(guest.reads)
    assert memory.read(0x1005008, 16) == bytes(16)
    assert memory.read(0x1005FF8, 8) == bytes(8)
    assert len(guest.reads) == before
    memory.read_virtual(TEXT + 0x5FF8, 16)
    assert guest.reads[before:] == [(TEXT + 0x6000, 8)]
    asked = [va for start, length in guest.reads for va in range(start, start + length, 8)]
    assert len(asked) == len(set(asked))


def test_a_new_stop_reads_anew() -> None:
    guest = Guest()
    memory = memory_of(guest)
    assert memory.read(0x1005000, 8) == bytes(8)
    guest.put(TEXT + 0x5000, b"\x33" * 8)
    assert memory.read(0x1005000, 8) == bytes(8)
    memory.new_stop(memory.symbols)
    assert memory.read(0x1005000, 8) == b"\x33" * 8


def test_a_cpu_in_the_kernel_shortens_the_search() -> None:
    koff = 0x16000000
    guest = Guest(koff=koff, phys_base=-koff & (1 << 64) - 1)
    memory = DirectMapMemory(guest.read, Symbols(SYMBOLS), lambda: TEXT + koff + 0x1234)
    assert memory.image is not None
    assert memory.image.koff == koff
    assert len(guest.reads) < 5
    other = Guest(koff=koff, build_id=bytes(20))
    memory = DirectMapMemory(other.read, Symbols(SYMBOLS), lambda: TEXT + koff + 0x1234)
    assert memory.image is None
    assert len(other.reads) < 5


def test_symbols_that_are_moved_move_the_image() -> None:
    koff = 0x16000000
    guest = Guest(koff=koff, phys_base=-koff & (1 << 64) - 1)
    memory = memory_of(guest)
    assert memory.image is not None
    assert (memory.image.va, memory.image.koff) == (TEXT + koff, koff)
    moved = Symbols({name: address + koff for name, address in SYMBOLS.items()})
    memory.new_stop(moved)
    assert memory.image is not None
    assert (memory.image.va, memory.image.koff) == (TEXT + koff, 0)


def test_page_offset_base_that_cannot_be_read() -> None:
    """Its usual value is no substitute: KASLR may have moved the direct map."""
    guest = Guest()
    guest.map(DIRECT + 0x7000000, b"\x22" * 8)
    guest.broken = SYMBOLS["page_offset_base"]
    memory = memory_of(guest)
    assert memory.read(0x1005000, 8) == bytes(8)
    with pytest.raises(TargetError, match="page_offset_base cannot be read"):
        memory.read(0x7000000, 8)


def test_no_direct_map_before_init_mem_mapping() -> None:
    """There such a read is an early page fault: it must not even be tried."""
    guest = Guest(early=True)
    guest.map(DIRECT + 0x7000000, b"\x22" * 8)
    memory = memory_of(guest)
    assert memory.read(0x1005000, 8) == bytes(8)
    with pytest.raises(ReadError, match="early page fault"):
        memory.read(0x7000000, 8)
    with pytest.raises(ReadError, match="early page fault"):
        memory.read_virtual(DIRECT + 0x7000000, 8)
    assert memory.ram == ()
    assert all(va >= KM for va, _ in guest.reads)


def test_no_ram() -> None:
    memory = memory_of(Guest())
    with pytest.raises(ReadError, match="no RAM there"):
        memory.read(0xFEE00000, 8)


def test_freed_image_memory_is_read_through_the_direct_map() -> None:
    """Page-table isolation unmaps the image's freed parts (set_memory_np_noalias())."""
    guest = Guest()
    memory = memory_of(guest)
    assert memory.image is not None
    hole = 0x1006000
    original = guest.read

    def read(va: int, length: int) -> bytes:
        if va == TEXT + 0x6000:
            raise ReadError(va, length, "E14", "virtual")
        return original(va, length)

    memory = DirectMapMemory(read, Symbols(SYMBOLS))
    guest.map(DIRECT + hole, b"\x44" * 8)
    assert memory.read(hole, 8) == b"\x44" * 8


def test_another_kernels_symbols() -> None:
    guest = Guest(build_id=bytes(20))
    memory = memory_of(guest)
    assert memory.image is None
    tries = len(guest.reads)
    assert memory.image is None
    assert len(guest.reads) == tries, "searched once"
    with pytest.raises(ReadError, match="not found"):
        memory.read(0x1000000, 8)


def test_user_addresses_are_refused() -> None:
    guest = Guest()
    memory = memory_of(guest)
    assert memory.image is not None
    before = len(guest.reads)
    with pytest.raises(ReadError, match="no kernel address"):
        memory.read_virtual(0x400000, 8)
    assert len(guest.reads) == before

# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory and CPUs out of a dump."""

from __future__ import annotations

import pytest

from gdb_sme.core.cr3 import CpuState
from gdb_sme.core.dump import DumpMemory, dump_c_bit, dump_cpus
from gdb_sme.core.elf import parse_core
from gdb_sme.core.ports import Range
from gdb_sme.errors import ReadError
from tests.cores import core, note, prstatus, qemu_state

C = 1 << 47
QEMU_CPU = qemu_state(
    rip=0xFFFFFFFF81234567,
    cs=0x10,
    rflags=0x246,
    gs_base=0xFFFF88800FC00000,
    cr=(0x80050033, 0, 0x7FFE0, C | 0x548A000, 0x3006F0),
)
KDUMP_CPU = prstatus(rip=0xFFFFFFFF81000123, cs=0x10, eflags=2, gs_base=0xFFFF888000000000)


def memory(*segments: tuple[int, int, bytes]) -> DumpMemory:
    data = core(b"", segments)
    found = parse_core(lambda offset, length: data[offset : offset + length], len(data))
    return DumpMemory("FILE", lambda offset, length: data[offset : offset + length], found.segments)


def test_a_read_may_go_across_segments() -> None:
    assert memory((0, 0x1003, b"defg"), (0, 0x1000, b"abc")).read(0x1001, 5) == b"bcdef"


def test_what_lies_between_segments_is_not_in_the_dump() -> None:
    dump = memory((0, 0x1000, b"abc"), (0, 0x2000, b"x"))
    assert dump.ram == (Range(0x1000, 0x1003), Range(0x2000, 0x2001))
    for pa, length in ((0xFFF, 1), (0x1002, 2), (0x1003, 1), (0x2001, 1)):
        with pytest.raises(ReadError, match="not in the dump"):
            dump.read(pa, length)


def test_a_file_that_ends_early_is_said() -> None:
    data = core(b"", [(0, 0x1000, b"abcdef")])
    found = parse_core(lambda offset, length: data[offset : offset + length], len(data))
    short = DumpMemory("FILE", lambda at, length: data[at : at + length][:2], found.segments)
    with pytest.raises(ReadError, match="the dump file ends before it"):
        short.read(0x1000, 6)


def test_a_second_view_of_the_same_ram_is_no_more_ram() -> None:
    dump = memory((0, 0, b"abcdef"), (0, 1 << 47, b"abcdef"))
    assert dump.ram == (Range(0, 6),)
    assert "bit 47 taken out" in dump.name


def test_physical_addresses_taken_from_page_tables_lose_the_c_bit() -> None:
    """QEMU's dump-guest-memory -p: encrypted ranges have it, unencrypted ones do not."""
    dump = memory((0xFFFF888000003000, 0x3, b"d"), (0xFFFF888000000000, C, b"abc"))
    assert dump.ram == (Range(0, 4),)
    assert dump.read(0, 4) == b"abcd"


def test_segments_may_overlap() -> None:
    dump = memory((0, 0x10, b"abcdef"), (1, 0x12, b"cd"), (2, 0x14, b"efgh"))
    assert dump.ram == (Range(0x10, 0x18),)
    assert dump.read(0x10, 8) == b"abcdefgh"


def test_what_has_no_physical_address_is_left_out() -> None:
    """/proc/kcore gives -1 to vmalloc."""
    dump = memory((0xFFFFC90000000000, (1 << 64) - 1, b"vmalloc"), (0, 0, b"ram"))
    assert dump.ram == (Range(0, 3),)
    assert "taken out" not in dump.name


@pytest.mark.parametrize(("pa", "bit"), [(0, None), (1 << 42, None), (1 << 43, 43), (3 << 50, 51)])
def test_dump_c_bit(pa: int, bit: int | None) -> None:
    data = core(b"", [(0, pa, b"x")])
    found = parse_core(lambda offset, length: data[offset : offset + length], len(data))
    assert dump_c_bit(found.segments) == bit


def cpus(*notes: bytes, la57: bool | None = None) -> tuple[CpuState, ...]:
    data = core(b"".join(notes), [])
    found = parse_core(lambda offset, length: data[offset : offset + length], len(data))
    return dump_cpus(found, la57)


def test_cpus_of_qemus_notes() -> None:
    both = cpus(note("CORE", 1, KDUMP_CPU), note("QEMU", 0, QEMU_CPU), note("QEMU", 0, QEMU_CPU))
    assert [cpu.index for cpu in both] == [0, 1]
    assert both[1] == CpuState(
        1,
        0xFFFFFFFF81234567,
        cs=0x10,
        rflags=0x246,
        cr0=0x80050033,
        cr2=0x7FFE0,
        cr3=C | 0x548A000,
        cr4=0x3006F0,
        gs_base=0xFFFF88800FC00000,
    )


def test_cpus_of_a_crash_have_no_control_registers() -> None:
    (cpu,) = cpus(note("CORE", 1, KDUMP_CPU), note("CORE", 3, b"psinfo"), la57=True)
    assert (cpu.rip, cpu.cs, cpu.rflags) == (0xFFFFFFFF81000123, 0x10, 2)
    assert cpu.gs_base == 0xFFFF888000000000
    assert cpu.cr3 is None
    assert len(cpu.mode.levels) == 5


def test_notes_of_another_layout_are_not_taken_for_qemus() -> None:
    other = (2).to_bytes(4, "little") + QEMU_CPU[4:]
    assert cpus(note("QEMU", 0, other), note("QEMU", 0, b"short")) == (CpuState(0, 0),)

# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from gdb_sme.core.ports import Range
from gdb_sme.target.mtree import RamMap, parse_mtree

# `info mtree -f` of QEMU 7.2: pc, 5 GiB, a second view at 1 << 47, shortened.
MTREE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000cafff (prio 0, rom): ram @00000000000c0000
  00000000000cb000-00000000000effff (prio 0, ram): ram @00000000000cb000
  00000000000f0000-00000000bfffffff (prio 0, ram): ram @00000000000f0000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000010000000000-000001007fffffff (prio 0, ram): ram @00000000c0000000
  0000800000000000-00008000bfffffff (prio 0, ram): enc0
  000080ff40000000-000081007fffffff (prio 0, ram): enc1

FlatView #2
 AS "cpu-smm-0", root: (none)
 Root memory region: (none)
  No rendered FlatView
"""


def test_ram_and_second_views() -> None:
    assert parse_mtree(MTREE) == RamMap(
        ram=(
            Range(0, 0xA0000),
            Range(0xC0000, 0xC0000000),
            Range(0xFFFC0000, 0x100000000),
            Range(0x10000000000, 0x10080000000),
        ),
        second_views={47: (Range(0, 0xC0000000), Range(0xFF40000000, 0x10080000000))},
    )


def test_without_second_views() -> None:
    plain = "\n".join(line for line in MTREE.splitlines() if "enc" not in line)
    assert parse_mtree(plain).second_views == {}
    assert parse_mtree(plain).ram == parse_mtree(MTREE).ram


def test_no_view_of_memory() -> None:
    assert parse_mtree("unknown command: 'info mtree -f'\n") == RamMap((), {})

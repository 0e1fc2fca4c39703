# SPDX-License-Identifier: GPL-2.0-or-later
"""The layout of guest RAM that is worked out, against QEMU's own ``info mtree -f``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import pytest

from gdb_sme.errors import BootError
from gdb_sme.harness.layout import (
    C_BIT_MAX,
    C_BIT_MIN,
    GIB,
    MIB,
    MemoryLayout,
    format_size,
)
from gdb_sme.harness.pytest_plugin import machine_config
from gdb_sme.harness.qemu import Machine, check_views

SIZES = (
    64 * MIB,
    512 * MIB,
    3 * GIB - MIB,
    3 * GIB,
    3 * GIB + MIB,
    3 * GIB + 512 * MIB,
    4 * GIB,
    4 * GIB + MIB,
    8 * GIB,
    16 * GIB,
)
ROMS = 0xC0000
"""From here to 1 MiB a PC has ROM in front of its RAM."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A line of ``info mtree -f``: what QEMU shows at ``start`` up to ``end``."""

    start: int
    end: int
    region: str
    offset: int


def shown(mtree: str) -> list[Shown]:
    """The RAM of the CPUs' view of memory."""
    (view,) = (part for part in mtree.split("FlatView #") if '\n AS "memory"' in part)
    pattern = r"^  (\w{16})-(\w{16}) \(prio -?\d+, ram\): (\S+)(?: @(\w+))?"
    return [
        Shown(int(first, 16), int(last, 16) + 1, region, int(offset or "0", 16))
        for first, last, region, offset in re.findall(pattern, view, re.MULTILINE)
    ]


def holes(lines: list[Shown], region: str, pa: int, size: int, offset: int) -> list[int]:
    """Addresses in [pa, pa + size) that do not show ``region`` from ``offset`` on."""
    found, at = [], pa
    for line in sorted(lines, key=lambda line: line.start):
        if line.region == region and line.end > at and line.start < pa + size:
            if line.start > at:
                found.append(at)
            if line.offset - line.start != offset - pa:
                found.append(line.start)
            at = line.end
    return found if at >= pa + size else [*found, at]


@pytest.mark.parametrize("la57", [False, True], ids=["4-level", "5-level"])
@pytest.mark.parametrize("memory", SIZES, ids=format_size)
@pytest.mark.parametrize("c_bit", [None, *range(C_BIT_MIN, C_BIT_MAX + 1)])
def test_qemu_shows_ram_where_the_layout_says(c_bit: int | None, memory: int, la57: bool) -> None:
    config = replace(
        machine_config("rfc-v2", "none" if c_bit is None else "sme"),
        c_bit=c_bit or 47,
        memory=memory,
        la57=la57,
    )
    with Machine(config) as machine:
        layout = machine.layout
        lines = shown(machine.qmp.hmp("info mtree -f"))
    assert len(layout.dimms) == (0 if c_bit is None else len(layout.parts))
    for number, part in enumerate(layout.parts):
        wrong = holes(lines, "ram", part.pa, part.size, part.offset)
        assert wrong == ([ROMS] if part.pa == 0 else [])
        if layout.enc_mask:
            region = f"enc{number}"
            assert holes(lines, region, part.pa | layout.enc_mask, part.size, part.offset) == []


def test_a_view_that_shows_other_bytes_is_found_before_the_guest_runs() -> None:
    with Machine(machine_config("rfc-v2", "sme")) as machine:
        layout = machine.layout
        check_views(layout, machine.qmp, machine.ram_fd)
        wrong: tuple[MemoryLayout, ...] = (
            replace(layout, enc_mask=1 << 50),
            replace(layout, parts=(replace(layout.parts[0], pa=1 << 40),)),
        )
        for other in wrong:
            before = os.pread(machine.ram_fd, 4096, 0)
            with pytest.raises(BootError, match="this QEMU lays RAM out in another way"):
                check_views(other, machine.qmp, machine.ram_fd)
            assert os.pread(machine.ram_fd, 4096, 0) == before


def test_a_machine_with_ram_elsewhere_does_not_start() -> None:
    config = machine_config(
        "rfc-v2", "sme", memory="4G", qemu_args=("-machine", "max-ram-below-4g=2G")
    )
    with pytest.raises(BootError, match="this QEMU lays RAM out in another way"):
        Machine(config)


def test_nothing_runs_before_gdb_says_so() -> None:
    with Machine(machine_config("rfc-v2", "sme")) as machine:
        assert not machine.qmp.running()
        assert machine.console.text() == ""
        assert machine.qmp.hmp("info registers").count("EIP=0000fff0") == 1


def test_qemu_that_does_not_start_says_why() -> None:
    config = machine_config("rfc-v2", qemu_args=("-device", "nonexistent"))
    with pytest.raises(BootError, match=r"QEMU did not start: .*nonexistent.* is not a valid"):
        Machine(config)

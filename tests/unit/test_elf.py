# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of contents of dumps, and files that are none."""

from __future__ import annotations

import pytest

from gdb_sme.core.elf import CoreFile, Segment, parse_core, parse_notes
from gdb_sme.errors import TargetError
from tests.cores import core, note

NOTES = note("CORE", 1, b"status") + note("QEMU", 0, b"cpu") + note("VMCOREINFO", 0, b"A=b\n")
WHOLE = core(NOTES, [(0xFFFF888000001000, 0x1000, b"one"), (0, 0x5000, b"three")])


def parse(data: bytes, size: int | None = None) -> CoreFile:
    return parse_core(lambda offset, length: data[offset : offset + length], size or len(data))


def test_segments_and_notes() -> None:
    found = parse(WHOLE)
    assert [(each.va, each.pa, each.size) for each in found.segments] == [
        (0xFFFF888000001000, 0x1000, 3),
        (0, 0x5000, 5),
    ]
    assert [WHOLE[each.offset : each.offset + each.size] for each in found.segments] == [
        b"one",
        b"three",
    ]
    assert found.named("QEMU") == (b"cpu",)
    assert found.named("CORE", 1) == (b"status",)
    assert found.named("CORE", 2) == ()


def test_more_segments_than_e_phnum_can_count() -> None:
    assert parse(core(NOTES, [(0, 0x1000, b"one")], xnum=True)).segments[0].pa == 0x1000


def test_segments_without_contents_are_left_out() -> None:
    assert parse(core(b"", [(0, 0x1000, b"")])).segments == ()


def test_a_file_whose_size_is_not_known_is_not_called_truncated() -> None:
    data = core(b"", [(0, 0x1000, b"one")])[:-1]
    found = parse_core(lambda offset, length: data[offset : offset + length], None)
    assert found.segments == (Segment(len(data) - 2, 0, 0x1000, 3),)


@pytest.mark.parametrize("missing", [1, 3, 8])
def test_truncated_in_its_memory(missing: int) -> None:
    with pytest.raises(TargetError, match=r"truncated: its segments end at byte .* dump it again"):
        parse(WHOLE[:-missing])


@pytest.mark.parametrize(
    ("length", "where"),
    [(20, "its ELF header"), (140, "its program headers"), (300, "its notes")],
)
def test_truncated_before_its_memory(length: int, where: str) -> None:
    with pytest.raises(TargetError, match=f"truncated: it ends within {where}"):
        parse(WHOLE[:length])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"KDUMP   " + bytes(4088), "kdump-compressed.*makedumpfile -E"),
        (b"DISKDUMP" + bytes(4088), "kdump-compressed.*makedumpfile -E"),
        (b"makedumpfile" + bytes(4084), "makedumpfile -R"),
        (b"MZ" + bytes(100), "no ELF file"),
        (b"", "is empty"),
        (core(b"", [], machine=3), "32-bit machine"),
        (core(b"", [], elf_class=1), "32-bit machine"),
        (core(b"", [], machine=183), "another architecture .*183"),
        (core(b"", [], elf_type=2), "no core dump"),
    ],
)
def test_what_is_no_x86_64_dump(data: bytes, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        parse(data, 1 << 20)


def test_notes_that_claim_more_than_there_is_end_the_list() -> None:
    assert [each.name for each in parse_notes(NOTES[:-4])] == ["CORE", "QEMU"]
    assert parse_notes(bytes(24)) == []

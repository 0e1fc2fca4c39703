# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks through random tables: built here, bit by bit, without the code under test."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import LEVEL4, LEVEL5, PagingMode
from gdb_sme.core.walk import walk
from gdb_sme.linux.translate import Root, Translation
from gdb_sme.render import walk as view
from tests.fakes import FakePhys, entries

#: Bits of the virtual address below an entry of each level, from the page upward (APM volume 2,
#: figures 5-17 to 5-33).
SHIFTS = (12, 21, 30, 39, 48)
PS = 1 << 7
NX = 1 << 63


@dataclass(frozen=True)
class Built:
    """A mapping and the tables that make it."""

    levels: int
    c_bit: int
    va: int
    pa: int
    size_shift: int
    root_pa: int
    memory: dict[int, bytes]
    write: bool
    user: bool
    execute: bool
    encrypted: bool
    global_: bool
    cache_index: int
    tables_encrypted: tuple[bool, ...]


@st.composite
def built(draw: st.DrawFn) -> Built:
    levels = draw(st.sampled_from([4, 5]))
    size_shift = draw(st.sampled_from([12, 21, 30]))
    c_bit = draw(st.integers(43, 51))
    bits = 9 * levels + 12
    va = draw(st.integers(0, (1 << bits) - 1))
    if va >> (bits - 1):
        va |= (1 << 64) - (1 << bits)
    page_pa = draw(st.integers(0, (1 << 43 - size_shift) - 1)) << size_shift
    depth = levels - SHIFTS.index(size_shift)
    numbers = draw(
        st.lists(st.integers(1, (1 << 31) - 1), min_size=depth, max_size=depth, unique=True)
    )
    tables = [number << 12 for number in numbers]
    targets = [*tables[1:], page_pa]
    rights = draw(
        st.lists(st.tuples(*[st.booleans()] * 4), min_size=depth, max_size=depth)
    )  # write, user, no-execute, C-bit a level
    cache = draw(st.integers(0, 7))
    global_ = draw(st.booleans())
    ignored = draw(st.integers(0, 127)) << 52 | draw(st.integers(0, 7)) << 9
    memory = {}
    for step, (write, user, no_execute, encrypted) in enumerate(rights):
        raw = targets[step] | 1 | write << 1 | user << 2 | no_execute << 63 | encrypted << c_bit
        raw |= ignored
        if step == depth - 1:
            raw |= (cache & 3) << 3 | global_ << 8
            raw |= (cache >> 2) << (7 if size_shift == 12 else 12)
            raw |= PS if size_shift > 12 else 0
        shift = SHIFTS[levels - 1 - step]
        memory[tables[step]] = entries({va >> shift & 511: raw})
    return Built(
        levels, c_bit, va, page_pa | va & ((1 << size_shift) - 1), size_shift, tables[0], memory,
        write=all(right[0] for right in rights),
        user=all(right[1] for right in rights),
        execute=not any(right[2] for right in rights),
        encrypted=rights[-1][3],
        global_=global_,
        cache_index=cache,
        tables_encrypted=tuple(right[3] for right in rights),
    )  # fmt: skip


@given(built())
def test_random_tables_walk_to_the_mapping_they_were_built_from(given_: Built) -> None:
    mode = LEVEL5 if given_.levels == 5 else LEVEL4
    enc = EncryptionBit(1 << given_.c_bit)
    found = walk(FakePhys(given_.memory), given_.va, given_.root_pa, mode, enc)
    mapping = found.mapping
    assert mapping is not None
    assert mapping.pa == given_.pa
    assert mapping.page_size == 1 << given_.size_shift
    assert mapping.permissions.write is given_.write
    assert mapping.permissions.user is given_.user
    assert mapping.permissions.execute is given_.execute
    assert mapping.encrypted is given_.encrypted
    assert mapping.global_ is given_.global_
    assert mapping.cache_index == given_.cache_index
    assert tuple(step.entry.c_bit for step in found.steps) == given_.tables_encrypted
    assert not any(step.repeated for step in found.steps)
    assert found.hole is None
    assert found.unreadable is None
    assert found.reserved == 0


class Garbage(FakePhys):
    """Memory in which every aligned 8 bytes are one of ``raws``, by their address."""

    def __init__(self, raws: list[int]) -> None:
        super().__init__({})
        self.raws = raws

    def read(self, pa: int, length: int) -> bytes:
        assert pa % 8 == 0
        assert length == 8
        return self.raws[(pa >> 3 ^ pa >> 12) % len(self.raws)].to_bytes(8, "little")


anything = st.integers(0, (1 << 64) - 1)
#: Garbage that gets deep: present, few flags, small addresses that lead to one another.
likely = st.builds(
    lambda page, flags, high: page << 12 | flags | high,
    st.integers(0, 7),
    st.sampled_from([0x1, 0x63, 0x67, 0xE3, 0x1E3, 0x120, 0x10E3, 0x0]),
    st.sampled_from([0, NX, 1 << 47, NX | 1 << 47, 0x0FFF << 52]),
)


@settings(max_examples=300)
@given(
    raws=st.lists(st.one_of(anything, likely), min_size=1, max_size=16),
    low=st.integers(0, (1 << 48) - 1),
    mode=st.sampled_from([LEVEL4, LEVEL5]),
    c_bit=st.one_of(st.none(), st.integers(43, 51)),
    polarity=st.booleans(),
    physical_bits=st.integers(36, 52),
    nx_enabled=st.booleans(),
)
def test_garbage_never_crashes_the_walker_and_it_ends(
    *,
    raws: list[int],
    low: int,
    mode: PagingMode,
    c_bit: int | None,
    polarity: bool,
    physical_bits: int,
    nx_enabled: bool,
) -> None:
    va = low | 0xFFFF000000000000 if low >> 47 else low
    enc = EncryptionBit(0 if c_bit is None else 1 << c_bit, polarity)
    found = walk(
        Garbage(raws), va, 0, mode, enc, physical_bits=physical_bits, nx_enabled=nx_enabled
    )
    assert 1 <= len(found.steps) <= 5
    ends = [found.mapping is not None, found.hole is not None, found.reserved != 0]
    assert ends.count(True) == 1
    translation = Translation(found, Root(0, 0, None, "--root 0"), None, None, None)
    assert str(view.text(translation)).count("\n") >= 3
    assert view.payload(translation)["outcome"] in ("mapped", "not-present", "reserved")

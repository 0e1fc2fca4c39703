# SPDX-License-Identifier: GPL-2.0-or-later
"""Scans of random tables against a reference that walks them entry by entry."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdb_sme.core import bulk
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.core.paging import LEVEL4, LEVEL5, PagingMode
from gdb_sme.core.ranges import MappedRange, conflicts
from gdb_sme.core.scan import Scan, scan
from tests.fakes import FakePhys, MappedPhys

P, RW, US, PWT, PCD, PS, G, NX = 1, 2, 4, 8, 16, 128, 256, 1 << 63
PAGES = 24
#: va, pa, page size, write, user, execute, C-bit, global, PAT index of one page.
Leaf = tuple[int, int, int, bool, bool, bool, bool, bool, int]


def reference(
    tables: dict[int, list[int]], levels: int, c_mask: int, physical_bits: int = 52
) -> Iterator[Leaf]:
    """Every page that table 0 maps, told from the bits alone (APM volume 2, figures 5-17 to 5-33).

    Written without any of the code under test.
    """

    def table(pa: int, shift: int, base: int, above: tuple[bool, bool, bool]) -> Iterator[Leaf]:
        write, user, execute = above
        for index, raw in enumerate(tables.get(pa, ())):
            if not raw & P:
                continue
            va = base + (index << shift)
            if shift == 12 + 9 * (levels - 1) and index >= 256:
                va += (1 << 64) - (1 << 12 + 9 * levels)
            address = raw & 0x000FFFFFFFFFF000 & ~c_mask
            if address >> physical_bits or (shift > 30 and raw & PS):
                continue
            rights = write and bool(raw & RW), user and bool(raw & US), execute and not raw & NX
            large = shift in (21, 30) and bool(raw & PS)
            if large and address & ((1 << shift) - 1) & ~0x1000:
                continue
            if large or shift == 12:
                pat = raw >> 12 & 1 if large else raw >> 7 & 1
                address &= ~((1 << shift) - 1)
                yield (
                    va, address, 1 << shift, *rights, bool(raw & c_mask), bool(raw & G),
                    pat << 2 | bool(raw & PCD) << 1 | bool(raw & PWT),
                )  # fmt: skip
            else:
                yield from table(address, shift - 9, va, rights)

    yield from table(0, 12 + 9 * (levels - 1), 0, (True, True, True))


def leaves(ranges: tuple[MappedRange, ...]) -> Iterator[Leaf]:
    """The pages of ``ranges``, in the reference's form."""
    for each in ranges:
        how = each.attributes
        rights = how.permissions
        for va, pa in each.pages():
            yield (
                va, pa, how.page_size, rights.write, rights.user, rights.execute,
                how.encrypted, how.global_, how.cache_index,
            )  # fmt: skip


def pack(tables: dict[int, list[int]]) -> FakePhys:
    return FakePhys(
        {pa: b"".join(raw.to_bytes(8, "little") for raw in table) for pa, table in tables.items()}
    )


@dataclass(frozen=True, repr=False)
class Space:
    """Tables by physical address, the root at 0."""

    levels: int
    c_mask: int
    seed: int
    tables: dict[int, list[int]]

    def __repr__(self) -> str:
        return f"Space(levels={self.levels}, c_mask={self.c_mask:#x}, seed={self.seed})"

    def leaves(self) -> Iterator[Leaf]:
        return reference(self.tables, self.levels, self.c_mask)

    def scan(self, start: int = 0, end: int = 1 << 64) -> Scan:
        mode = LEVEL5 if self.levels == 5 else LEVEL4
        memory, enc = pack(self.tables), EncryptionBit(self.c_mask)
        return scan(memory, 0, mode, enc, start=start, end=end)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Trees of tables that hold what scans recognise in bulk, and what breaks the pattern."""
    levels = draw(st.sampled_from([4, 5]))
    c_mask = draw(st.sampled_from([0, 1 << 47, 1 << 51]))
    seed = draw(st.integers(0, 1 << 32))
    rng = random.Random(seed)
    tables: dict[int, list[int]] = {}
    finished: dict[int, list[int]] = {}
    flags = [P | RW, P | RW | NX, P | RW | US, P, P | RW | G | NX, P | RW | PCD | PWT, P | PS]

    def pages(shift: int) -> list[int]:
        """A table of pages: some runs, of which some are cut, disturbed or repeated."""
        table = [0] * 512
        at = 0
        while at < 512:
            count = rng.choice([1, 2, 3, 100, 512, 512])
            kind = rng.choice(["run", "run", "same", "hole", "swap", "noise"])
            how = rng.choice(flags) | rng.choice([0, c_mask]) | rng.choice([0, 0x60, 0xE00])
            if shift > 12:
                how |= PS
            number = rng.choice([0, 0, 512, rng.randrange(1 << 14)])
            if rng.random() < 0.05:
                number = (1 << 47 >> shift) - 3  # carries into the C-bit
            for index in range(at, min(512, at + count)):
                if kind == "run":
                    table[index] = number + index - at << shift | how
                elif kind == "same":
                    table[index] = number << shift | how
                elif kind == "swap":
                    table[index] = how & ~P | index << 12
                elif kind == "noise":
                    table[index] = (
                        rng.getrandbits(14) << shift | rng.choice(flags) | (PS if shift > 12 else 0)
                    )
            at += count
        if rng.random() < 0.5:
            index = rng.randrange(512)
            table[index] ^= rng.choice([0x20, 0x40, RW, c_mask, NX, 1 << 55, 1 << shift, P])
        return table

    def build(depth: int) -> int:
        """A table ``depth`` levels above the pages; its number."""
        pa = len(tables) << 12
        tables[pa] = []
        shift = 12 + 9 * depth
        if depth == 0 or (depth < 3 and rng.random() < 0.2):
            tables[pa] = pages(shift)
            finished.setdefault(depth, []).append(pa)
            return pa
        table = [0] * 512
        at = rng.choice([0, 255, rng.randrange(512)])
        for _ in range(rng.choice([1, 2, 3])):
            if at >= 512:
                break
            # A new table, or one of that level that stands elsewhere already.
            if len(tables) < PAGES and rng.random() < 0.8:
                child = build(depth - 1)
            elif finished.get(depth - 1):
                child = rng.choice(finished[depth - 1])
            else:
                break
            how = P | rng.choice([RW, RW | US, 0, RW | NX]) | rng.choice([0, c_mask])
            for index in range(at, min(512, at + rng.choice([1, 1, 2]))):
                table[index] = child | how
            at += rng.choice([1, 2, 50])
        tables[pa] = table
        finished.setdefault(depth, []).append(pa)
        return pa

    build(levels - 1)
    return Space(levels, c_mask, seed, tables)


@settings(max_examples=80, deadline=None)
@given(spaces())
def test_a_scan_finds_every_page_with_its_attributes(
    space: Space,
) -> None:
    found = space.scan()
    assert list(leaves(found.ranges)) == list(space.leaves())
    for one, next_ in zip(found.ranges, found.ranges[1:], strict=False):
        assert one.end <= next_.va
        together = one.end == next_.va and one.attributes == next_.attributes
        if together and not one.repeated:
            assert one.pa + one.size != next_.pa, "two ranges that are one"
    assert found.stopped_at is None
    assert found.tables_read <= len(space.tables)


@settings(max_examples=30, deadline=None)
@given(spaces(), st.data())
def test_a_part_is_the_part_of_the_whole(space: Space, data: st.DataObject) -> None:
    whole = list(space.leaves())
    somewhere = st.integers(0, (1 << 64) - 1)
    if whole:
        near = st.sampled_from(whole).flatmap(
            lambda leaf: st.integers(-1, 1).map(lambda by: (leaf[0] + by) % (1 << 64))
        )
        somewhere = st.one_of(near, somewhere)
    start, last = sorted((data.draw(somewhere), data.draw(somewhere)))
    end = last + 1
    found = space.scan(start, end)
    assert list(leaves(found.ranges)) == [
        leaf for leaf in whole if leaf[0] + leaf[2] > start and leaf[0] < end
    ]


@settings(max_examples=30, deadline=None)
@given(
    raws=st.lists(
        st.one_of(
            st.integers(0, (1 << 64) - 1),
            st.builds(
                lambda page, flags: page << 12 | flags,
                st.integers(0, 5),
                st.sampled_from([0, 1, 0x63, 0x67, 0xE3, 0x80000000000000E7, 0x10E3]),
            ),
        ),
        min_size=1,
        max_size=40,
    ),
    pages=st.integers(1, 6),
    seed=st.integers(0, 1 << 32),
    mode=st.sampled_from([LEVEL4, LEVEL5]),
)
def test_garbage_ends_within_the_limit_and_what_it_finds_is_right(
    raws: list[int], pages: int, seed: int, mode: PagingMode
) -> None:
    rng = random.Random(seed)
    tables = {page << 12: [rng.choice(raws) for _ in range(512)] for page in range(pages)}
    limit = 5000
    found = scan(pack(tables), 0, mode, EncryptionBit(1 << 51), limit=limit)
    assert len(found.ranges) + len(found.tables) + len(found.troubles) <= limit + 3 * 512
    levels = len(mode.levels)
    expected = reference(tables, levels, 1 << 51)
    # As far as it came, and no further than is quick to compare.
    compared = itertools.islice(zip(leaves(found.ranges), expected, strict=False), 20000)
    assert all(got == wanted for got, wanted in compared)


@settings(max_examples=30, deadline=None)
@given(spaces())
def test_conflicts_are_the_pages_that_are_mapped_both_ways(
    space: Space,
) -> None:
    found = space.scan()
    sides: dict[bool, set[int]] = {True: set(), False: set()}
    for leaf in leaves(found.ranges):
        sides[leaf[6]].update(range(leaf[1] >> 12, (leaf[1] + min(leaf[2], 1 << 21)) >> 12))
    expected = sides[True] & sides[False]
    got = set()
    for each in conflicts(found.ranges):
        assert each.encrypted
        assert each.unencrypted
        for one in (*each.encrypted, *each.unencrypted):
            assert one.physical.start <= each.physical.start
            assert each.physical.end <= one.physical.end
        got.update(range(each.physical.start >> 12, each.physical.end >> 12))
    if all(leaf[2] <= 1 << 21 for leaf in leaves(found.ranges)):
        assert got == expected
    else:
        assert expected <= got


def mapped(tables: dict[int, list[int]], *, apart: bool, hidden: set[int]) -> MappedPhys:
    """The tables in memory that is mapped: each by itself (but for ``hidden``), or all in one."""
    blocks = {pa: b"".join(raw.to_bytes(8, "little") for raw in each)
              for pa, each in sorted(tables.items())}  # fmt: skip
    return MappedPhys(blocks, hidden) if apart else MappedPhys({0: b"".join(blocks.values())})


@pytest.fixture(scope="module")
def always_in_bulk() -> Iterator[None]:
    """`gdb_sme.core.bulk` for however few tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_AT_ONCE", 4)
        patch.setattr(bulk, "_EXPECTED", bytearray(4 * 4096))
        patch.setattr(bulk, "_FOLLOWING", np.frombuffer(bulk._EXPECTED, "<u8"))
        bulk._FOLLOWING[:] = np.arange(4 * 512, dtype="<u8") << 12
        patch.setattr(bulk, "_FIRST", bulk._FIRST[:4])
        yield


@pytest.mark.usefixtures("always_in_bulk")
@settings(max_examples=150, deadline=None)
@given(spaces(), st.data())
def test_in_bulk_a_scan_is_the_same(space: Space, data: st.DataObject) -> None:
    hidden = data.draw(st.sets(st.sampled_from(sorted(space.tables)), max_size=2))
    memory = mapped(space.tables, apart=data.draw(st.booleans()), hidden=hidden)
    mode, enc = LEVEL5 if space.levels == 5 else LEVEL4, EncryptionBit(space.c_mask)
    edges = st.one_of(
        st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1 << 30, (1 << 64) - (1 << 30)])
    )
    how = {
        "physical_bits": data.draw(st.sampled_from([52, 48, 40])),
        "nx_enabled": data.draw(st.booleans()),
        "limit": data.draw(st.sampled_from([1 << 21, 1000, 100, 20])),
        "start": data.draw(st.one_of(st.just(0), edges)),
        "end": data.draw(st.one_of(st.just(1 << 64), edges)),
    }
    assert scan(memory, 0, mode, enc, in_bulk=True, **how) == scan(
        memory, 0, mode, enc, in_bulk=False, **how
    )


class Bottoms(dict[int, list[int]]):
    """Tables by physical address."""

    seed = c_mask = 0

    def __repr__(self) -> str:
        return f"Bottoms({len(self)} tables, c_mask={self.c_mask:#x}, seed={self.seed})"


@st.composite
def bottoms(draw: st.DrawFn) -> Bottoms:
    """A root; below each of some entries a pud and a pmd table, and below those tables of PTEs by
    the dozen. Some entries lead to nothing odd."""
    seed = draw(st.integers(0, 1 << 32))
    rng = random.Random(seed)
    c_mask = draw(st.sampled_from([0, 1 << 47]))
    tables: dict[int, list[int]] = {0: [0] * 512}
    for slot in sorted(draw(st.sets(st.sampled_from([0, 1, 255, 256, 257, 511]), min_size=1))):
        _below(rng, tables, slot, c_mask, odd=rng.choice([0.0, 0.0, 0.02, 0.3]))
    made = Bottoms({pa: (each + [0] * 512)[:512] for pa, each in tables.items()})
    made.seed, made.c_mask = seed, c_mask
    return made


def _below(
    rng: random.Random, tables: dict[int, list[int]], slot: int, c_mask: int, odd: float
) -> None:
    """Add what an entry of the root leads to; ``odd`` is how likely an entry of it is odd."""
    pud, pmd, first = (len(tables) + n << 12 for n in range(3))

    def pointer(pa: int) -> int:
        return pa | rng.choice([0x67, 0x67, 0x65, 0x63]) | rng.choice([c_mask, 0, 1 << 63])

    tables[0][slot] = pointer(pud)
    at = rng.choice([0, 511, rng.randrange(508)])
    tables[pud] = [0] * at + [pointer(pmd)]
    if rng.random() < 0.3:
        tables[pud] += [n << 30 | 0xE3 | c_mask for n in (1, 2, 4)]
    tables[pmd] = []
    page = rng.choice([rng.randrange(1 << 20), (1 << 35) - 1024])  # the second runs into the C-bit
    if not odd:
        page = rng.randrange(1 << 20)
    pointers = []
    same = pointer(0)
    for number in range(rng.randrange(1, 24)):
        flags = rng.choice([0x63, 0x63, 0x67, 0x163 | 1 << 63]) | rng.choice([c_mask, c_mask, 0])
        kinds = ["on", "on", "on", "random", "zero", "old", "noted"] + ["same", "top"] * bool(odd)
        kind = rng.choice(kinds)
        table = []
        for index in range(512):
            raw = {"zero": 0, "same": page << 12 | flags, "old": (page + index) << 12 | flags & ~1,
                   "random": rng.getrandbits(20) << 12 | flags,
                   "top": ((1 << 40) - 99 + index << 12) + flags}.get(kind)  # fmt: skip
            if raw is None:
                raw = (page + index) << 12 | flags
            if kind == "noted":
                raw ^= rng.choice([0, 0, 0x20, 0x60, 1 << 57])
                if rng.random() < 0.02:
                    raw ^= rng.choice([1, 2, c_mask, 0x80, 0x100, 0x7000])
            if rng.random() < odd:
                raw = rng.choice(
                    [raw ^ 0x60, raw ^ 1, raw ^ c_mask, raw + 0x1000, raw ^ 1 << 46, raw ^ 1 << 51,
                     raw ^ 0x80, raw ^ 1 << 57, raw & ~0xFFFFFF000 | (1 << 47) - 0x1000, 0]
                )  # fmt: skip
            table.append(raw & (1 << 64) - 1)
        page += rng.choice([512, 512, 512, 511, rng.randrange(1 << 16)])
        tables[first + (number << 12)] = table
        flags = rng.choice([same, same, same, pointer(0)])
        pointers.append(first + (number << 12) | flags)
    for _ in range(rng.randrange(3)):
        pointers.insert(rng.randrange(len(pointers) + 1), rng.choice([0, 0x400000 | 0xE3 | c_mask]))
    if odd:
        for _ in range(rng.randrange(5)):
            pointers.insert(
                rng.randrange(len(pointers) + 1),
                rng.choice([rng.choice(pointers), pmd | 0x67, 0x67, 0x999000 | 0x67,
                            rng.choice(pointers) ^ 2, rng.choice(pointers) ^ 1 << 63,
                            0x8001 | 1 << 51]),
            )  # fmt: skip
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(pointers))
            pointers[at:at] = pointers[at : at + 1] * rng.choice([1, 3])
    if rng.random() < 0.5:
        rng.shuffle(pointers)
    tables[pmd] = pointers


@pytest.mark.usefixtures("always_in_bulk")
@settings(max_examples=150, deadline=None)
@given(bottoms(), st.booleans(), st.sampled_from([52, 48, 46]), st.sampled_from([1 << 21, 200]))
def test_in_bulk_many_tables_of_ptes_are_the_same(
    tables: Bottoms, apart: bool, physical_bits: int, limit: int
) -> None:
    memory = mapped(tables, apart=apart, hidden={0x4000})
    in_bulk, one_by_one = (
        scan(
            memory, 0, LEVEL4, EncryptionBit(tables.c_mask),
            physical_bits=physical_bits, limit=limit, in_bulk=how,
        )
        for how in (True, False)
    )  # fmt: skip
    assert in_bulk == one_by_one
    if limit > 200:
        expected = reference(tables, 4, tables.c_mask, physical_bits)
        assert list(leaves(in_bulk.ranges)) == list(expected)


@pytest.mark.usefixtures("always_in_bulk")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 12), st.sampled_from([LEVEL4, LEVEL5]))
def test_in_bulk_garbage_is_the_same(seed: int, pages: int, mode: PagingMode) -> None:
    rng = random.Random(seed)
    raws = [rng.getrandbits(64) for _ in range(20)]
    raws += [rng.randrange(pages + 1) << 12 | rng.choice([0, 1, 0x63, 0x67, 0xE3]) for _ in raws]
    tables = {page << 12: [rng.choice(raws) for _ in range(512)] for page in range(pages)}
    memory = mapped(tables, apart=rng.random() < 0.5, hidden=set())
    in_bulk, one_by_one = (
        scan(memory, 0, mode, EncryptionBit(1 << 51), limit=5000, in_bulk=how)
        for how in (True, False)
    )
    assert in_bulk == one_by_one

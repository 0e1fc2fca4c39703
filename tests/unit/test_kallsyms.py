# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's symbol table, written in each of its layouts and found again."""

from __future__ import annotations

import random
import struct

import pytest

from gdb_sme.linux.kallsyms import read_kallsyms
from tests.fakes import FakePhys

VA, PA = 0xFFFFFFFFB8000000, 0x8600000
MIB = 1 << 20

#: Tokens: every character stands for itself but these, which stand for pairs and more.
EXPANDED = {1: b"init_", 2: b"__", 3: b"_top", 4: b"tse"}


def tokens() -> list[bytes]:
    return [EXPANDED.get(code, bytes((code,)) if code else b"x0") for code in range(256)]


def compress(name: bytes) -> bytes:
    for code, text in EXPANDED.items():
        name = name.replace(text, bytes((code,)))
    return name


def align(data: bytes) -> bytes:
    return data.ljust(len(data) + 7 & ~7, b"\0")


def symbols(count: int) -> list[tuple[bytes, int]]:
    """Type and name, and address: per-CPU ones first, then the image's, one of them long."""
    chosen = random.Random(count)
    found = [(b"Acpu_%d" % number, 8 * number) for number in range(1, 40)]
    found += [(b"T_text", VA), (b"Dinit_top_pgt", VA + 0x1C22000), (b"t" + b"q" * 300, VA + 64)]
    while len(found) < count:
        name = b"t__sym%x_init_%d" % (chosen.getrandbits(40), len(found))
        found.append((name, VA + chosen.randrange(1 << 24)))
    return found


def tables(count: int, layout: str, *, percpu: bool = True) -> bytes:
    """What write_src() of scripts/kallsyms.c writes: 6.1, 6.1.y and 6.12."""
    names = b""
    markers = []
    for number, (name, _) in enumerate(symbols(count)):
        if number % 256 == 0:
            markers.append(len(names))
        packed = compress(name)
        size = len(packed)
        names += bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
        names += packed
    if percpu:
        offsets = [at if at < VA else VA - 1 - at for _, at in symbols(count)]
        values = struct.pack(f"<{count}i", *offsets)
    else:
        values = struct.pack(f"<{count}I", *(max(at, VA) - VA for _, at in symbols(count)))
    starts = [0]
    for token in tokens()[:-1]:
        starts.append(starts[-1] + len(token) + 1)
    addresses = [align(values), struct.pack("<Q", VA)]
    listed = [
        struct.pack("<Q", count),
        align(names),
        align(struct.pack(f"<{len(markers)}I", *markers)),
    ]
    text = [align(b"".join(token + b"\0" for token in tokens())), struct.pack("<256H", *starts)]
    sequences = [align(random.Random(1).randbytes(3 * count))]
    order = {
        "6.1": addresses + listed + text,
        "6.1.y": addresses + listed + sequences + text,
        "6.12": listed + text + addresses + sequences,
    }
    return b"".join(order[layout])


def image(data: bytes, at: int, size: int = 4 * MIB) -> FakePhys:
    noise = random.Random(2).randbytes(at)
    # The digits alone, as in any table of strings, must not be taken for the tokens.
    decoy = b"".join(b"%d\0" % digit for digit in range(10)) + b"rest\0" * 300
    noise = noise[: at - len(decoy)] + decoy
    return FakePhys({PA: (noise + data).ljust(size, b"\0")})


@pytest.mark.parametrize("layout", ["6.1", "6.1.y", "6.12"])
@pytest.mark.parametrize("at", [MIB + 4096, 2 * MIB - 4096])
def test_every_symbol_is_found_in_every_layout(layout: str, at: int) -> None:
    found = read_kallsyms(image(tables(5000, layout), at), VA, PA)
    assert found == [(name[1:].decode(), address) for name, address in symbols(5000)]


@pytest.mark.parametrize("count", [1024, 1025, 1279])
def test_counts_around_a_block_of_names(count: int) -> None:
    assert len(read_kallsyms(image(tables(count, "6.12"), MIB), VA, PA)) == count


def test_without_absolute_percpu_offsets_count_up() -> None:
    found = dict(read_kallsyms(image(tables(2000, "6.1", percpu=False), MIB), VA, PA))
    assert found["init_top_pgt"] == VA + 0x1C22000


def test_an_image_without_kallsyms() -> None:
    assert read_kallsyms(image(b"", MIB), VA, PA) == []


def test_another_kernels_tables_are_not_believed() -> None:
    """_text must be where the page tables have it."""
    assert read_kallsyms(image(tables(2000, "6.12"), MIB), VA + 0x200000, PA) == []


@pytest.mark.parametrize("layout", ["6.1", "6.12"])
def test_damaged_tables_are_not_believed(layout: str) -> None:
    data = tables(2000, layout)
    index = data.index(b"8\x009\x00")
    assert read_kallsyms(image(data[:index] + b"8\x00?\x00" + data[index + 4 :], MIB), VA, PA) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own symbol table, found in its memory with no symbol to start from.

Layout: write_src() of scripts/kallsyms.c. What it writes has moved over time::

    6.1      offsets, relative_base, num_syms, names, markers, token_table, token_index
    6.1.y    the same with seqs_of_names before token_table (6.2 and stable kernels)
    6.12     num_syms, names, markers, token_table, token_index, offsets, relative_base, ...

Nothing here depends on the version: token_table is found by its contents, the rest by what must
lie beside it, and everything is checked against what the tables say about each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from gdb_sme.core.ports import PhysMemory
from gdb_sme.errors import ReadError

#: Every digit occurs in names, so each has itself as its token (kallsyms.c, optimize_result).
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS = 256
_BLOCK = 256
_FEWEST, _MOST = 1000, 1 << 21

#: Bytes read at a time, and how far above _text to look: KERNEL_IMAGE_SIZE is 1 GiB at most, but
#: .rodata follows the text, and the largest distribution kernels have 64 MiB of both.
_CHUNK = 1 << 20
_FURTHEST = 128 << 20


def _align(offset: int) -> int:
    return offset + 7 & ~7


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def read_kallsyms(memory: PhysMemory, va: int, pa: int) -> list[tuple[str, int]]:
    """Names and run-time addresses of all symbols of the running kernel.

    Args:
        memory: physical memory.
        va: virtual address of _text.
        pa: physical address of _text; the image is contiguous.

    Returns:
        The symbols in the kernel's order; empty when there is no kallsyms.
    """
    data = bytearray()
    tokens_at = None
    while len(data) < _FURTHEST:
        try:
            data += memory.read(pa + len(data), _CHUNK)
        except ReadError:
            break
        if tokens_at is None:
            before = max(0, len(data) - _CHUNK - (1 << 16))
            tokens_at = _find_tokens(data, before)
            continue
        found = _decode(bytes(data), tokens_at, va)
        if found:
            return found
        # What follows token_index (4 bytes a symbol) may reach into the chunks after it.
        if len(data) > tokens_at + 4 * _CHUNK:
            break
    return [] if tokens_at is None else _decode(bytes(data), tokens_at, va)


def _find_tokens(data: bytes | bytearray, start: int) -> int | None:
    """Offset of kallsyms_token_table: 256 strings, and after them the 256 offsets of each."""
    at = data.find(_DIGITS, start)
    while at >= 0:
        end = at
        for _ in range(_TOKENS - ord("0")):
            end = data.find(b"\0", end) + 1
            if not end:
                return None
        index = _align(end)
        table = at - int.from_bytes(data[index + 2 * ord("0") :][:2], "little")
        if 0 <= table <= at and _tokens(data, table, index) is not None:
            return table
        at = data.find(_DIGITS, at + 1)
    return None


def _tokens(data: bytes | bytearray, table: int, index: int) -> list[bytes] | None:
    """The 256 tokens, None when table and index do not agree."""
    tokens = bytes(data[table:index]).split(b"\0")[:_TOKENS]
    if len(tokens) < _TOKENS or len(data) < index + 2 * _TOKENS:
        return None
    starts = [0, *accumulate(len(token) + 1 for token in tokens[:-1])]
    written = b"".join(start.to_bytes(2, "little") for start in starts if start < 1 << 16)
    return tokens if bytes(data[index : index + 2 * _TOKENS]) == written else None


def _decode(data: bytes, tokens_at: int, va: int) -> list[tuple[str, int]]:
    end = tokens_at
    for _ in range(_TOKENS):
        end = data.index(b"\0", end) + 1
    index = _align(end)
    tokens = _tokens(data, tokens_at, index)
    if tokens is None:
        return []
    for counted_at, count in _counts(data, tokens_at):
        names = _names(data, counted_at + 8, count, tokens)
        before = counted_at - 8
        for offsets, base in (
            (index + 2 * _TOKENS, index + 2 * _TOKENS + _align(4 * count)),
            (before - _align(4 * count), before),
        ):
            addresses = _addresses(data, offsets, base, count)
            # `_text` must lie where the page tables say that it does.
            if (b"_text", va) in zip((name[1:] for name in names), addresses, strict=False):
                text = (name[1:].decode("ascii", "replace") for name in names)
                return list(zip(text, addresses, strict=True))
    return []


def _counts(data: bytes, tokens_at: int) -> Iterator[tuple[int, int]]:
    """Where kallsyms_num_syms can be, and its value: names and markers behind it agree with it."""
    words = memoryview(data)[: tokens_at & ~7].cast("Q")
    for word in range(len(words) - 1, -1, -1):
        count = words[word]
        if not _FEWEST <= count <= _MOST:
            continue
        blocks = -(-count // _BLOCK)
        names = 8 * word + 8
        for sequences in (0, _align(3 * count)):
            markers = tokens_at - sequences - _align(4 * blocks)
            if markers <= names + 2 * count or _u32(data, markers):
                continue
            if _skip_names(data, names, _BLOCK) == names + _u32(data, markers + 4):
                yield 8 * word, count


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Length of the compressed name at ``at``, and where it begins: ULEB128 of one or two bytes."""
    length = data[at]
    if length & 0x80:
        return length & 0x7F | data[at + 1] << 7, at + 2
    return length, at + 1


def _skip_names(data: bytes, at: int, count: int) -> int | None:
    for _ in range(count):
        if at + 2 > len(data):
            return None
        length, start = _length(data, at)
        if not length:
            return None
        at = start + length
    return at


def _names(data: bytes, at: int, count: int, tokens: list[bytes]) -> list[bytes]:
    names = []
    token = tokens.__getitem__
    for _ in range(count):
        length, start = _length(data, at)
        at = start + length
        names.append(b"".join(map(token, data[start:at])))
    return names


def _addresses(data: bytes, offsets: int, base: int, count: int) -> list[int]:
    """kallsyms_sym_address() of kernel/kallsyms.c for all symbols; empty where there is no table.

    With CONFIG_KALLSYMS_ABSOLUTE_PERCPU positive offsets are per-CPU symbols' own values, and
    others count down from relative_base; without it all count up.
    """
    if offsets < 0 or base + 8 > len(data):
        return []
    relative = int.from_bytes(data[base : base + 8], "little")
    if not relative >> 63:
        return []
    values = memoryview(data)[offsets : offsets + 4 * count].cast("i")
    if any(value < 0 for value in values):
        return [value if value >= 0 else relative - 1 - value for value in values]
    return [relative + value for value in values]

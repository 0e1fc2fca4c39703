# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.core import address
from gdb_sme.core.ports import Range


@pytest.mark.parametrize(
    ("va", "va_bits", "canonical"),
    [
        (0, 48, True),
        (0x00007FFFFFFFFFFF, 48, True),
        (0x0000800000000000, 48, False),
        (0xFFFF7FFFFFFFFFFF, 48, False),
        (0xFFFF800000000000, 48, True),
        (0xFFFFFFFFFFFFFFFF, 48, True),
        (0x1234567890123456, 48, False),
        (0x0000800000000000, 57, True),
        (0x00FFFFFFFFFFFFFF, 57, True),
        (0x0100000000000000, 57, False),
        (0xFF00000000000000, 57, True),
        (0xFE00000000000000, 57, False),
        (1 << 64, 48, False),
    ],
)
def test_is_canonical(va: int, va_bits: int, canonical: bool) -> None:
    assert address.is_canonical(va, va_bits) is canonical


def test_sign_extend() -> None:
    assert address.sign_extend(0x0000888000000000, 48) == 0xFFFF888000000000
    assert address.sign_extend(0x00007FFFFFFFFFFF, 48) == 0x00007FFFFFFFFFFF
    assert address.sign_extend(0x0000888000000000, 57) == 0x0000888000000000
    assert address.sign_extend(0x0111000000000000, 57) == 0xFF11000000000000


def test_alignment() -> None:
    assert address.align_down(0x1FFFFF, 0x1000) == 0x1FF000
    assert address.align_up(0x1FF001, 0x1000) == 0x200000
    assert address.align_up(0x1FF000, 0x1000) == 0x1FF000


def test_how_addresses_are_written() -> None:
    assert address.hex_va(0x1000) == "0x0000000000001000"
    assert address.hex_pa(0x1000) == "0x00001000"
    assert address.hex_pa(0x800002A10000) == "0x800002a10000"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (4096, "4 KiB"),
        (2 << 20, "2 MiB"),
        (1 << 30, "1 GiB"),
        (1 << 40, "1 TiB"),
        (1536 << 20, "1536 MiB"),
        (1000, "1000 bytes"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    assert address.size_text(size) == text


def test_range() -> None:
    ram = Range(0x1000, 0x3000)
    assert ram.size == 0x2000
    assert 0x1000 in ram
    assert 0x2FFF in ram
    assert 0x3000 not in ram
    assert 0xFFF not in ram
    assert "0x1000" not in ram

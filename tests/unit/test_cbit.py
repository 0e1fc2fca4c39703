# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from gdb_sme.core.cbit import NO_ENCRYPTION, EncryptionBit


@pytest.mark.parametrize("position", [43, 47, 51])
def test_c_bit_set_is_encrypted(position: int) -> None:
    enc = EncryptionBit(1 << position)
    assert enc.position == position
    assert enc.is_set(1 << position | 0x63)
    assert enc.encrypted(1 << position | 0x63)
    assert not enc.encrypted(0x63)
    assert enc.address(1 << position | 1 << 63 | 0x2A15067) == 0x2A15000


def test_shared_bit_set_is_not_encrypted() -> None:
    enc = EncryptionBit(1 << 51, set_is_encrypted=False)
    assert enc.is_set(1 << 51)
    assert not enc.encrypted(1 << 51 | 0x1000)
    assert enc.encrypted(0x1000)
    assert enc.address(1 << 51 | 0x1000) == 0x1000


def test_without_a_bit_nothing_is_encrypted_and_the_address_is_whole() -> None:
    assert NO_ENCRYPTION.position is None
    assert not NO_ENCRYPTION.is_set(0xFFFFFFFFFFFFFFFF)
    assert not NO_ENCRYPTION.encrypted(0xFFFFFFFFFFFFFFFF)
    assert not EncryptionBit(0, set_is_encrypted=False).encrypted(0x1000)
    assert NO_ENCRYPTION.address(0x0000800002A15067) == 0x800002A15000

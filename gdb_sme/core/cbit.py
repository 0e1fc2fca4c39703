# SPDX-License-Identifier: GPL-2.0-or-later
"""The encryption bit of an entry: where it is and what it says when set.

The one place where the mask comes off an address. AMD's C-bit (APM volume 2, section 7.10) makes a
page encrypted when set; Intel TDX's shared bit makes it unencrypted when set.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.core.address import PAGE_FRAME_MASK

#: An address bit from here on that nobody explained may be a C-bit: those of AMD's CPUs are 47 and
#: 51, and memory that reaches bit 43 is yet to be built.
LOWEST_C_BIT = 43


@dataclass(frozen=True, slots=True)
class EncryptionBit:
    """The bit of an entry that decides on encryption.

    Attributes:
        mask: the bit as a mask, 0 when nothing is encrypted at all.
        set_is_encrypted: whether an entry with the bit set is encrypted (AMD) or not (TDX, vTOM).
    """

    mask: int
    set_is_encrypted: bool = True

    @property
    def position(self) -> int | None:
        """The bit's number, None when there is no bit."""
        return self.mask.bit_length() - 1 if self.mask else None

    def is_set(self, raw: int) -> bool:
        """Whether the bit is set in ``raw``, an entry or a CR3 value."""
        return bool(raw & self.mask)

    def encrypted(self, raw: int) -> bool:
        """Whether memory reached through ``raw`` is encrypted."""
        return bool(self.mask) and self.is_set(raw) == self.set_is_encrypted

    def address(self, raw: int) -> int:
        """The physical page address in ``raw`` (bits 51:12), with the encryption bit taken out."""
        return raw & PAGE_FRAME_MASK & ~self.mask


NO_ENCRYPTION = EncryptionBit(0)

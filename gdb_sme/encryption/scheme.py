# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scheme is told by the kernel, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gdb_sme.core.address import PHYSICAL_BITS, PHYSICAL_MASK
from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.errors import AddressError

#: Bits that an encryption bit can be: below 32 it would lie inside a 1 GiB page's offset or under
#: the RAM of any machine that has one; above 51 is no address (APM volume 2, section 7.10).
LOWEST_BIT = 32
HIGHEST_BIT = PHYSICAL_BITS - 1

#: MSR_AMD64_SEV, C001_0131: what the kernel keeps in sev_status
#: (arch/x86/include/asm/msr-index.h, 6.1 and 6.12).
SEV_ENABLED = 1 << 0
SEV_ES_ENABLED = 1 << 1
SEV_SNP_ENABLED = 1 << 2
SNP_VTOM = 1 << 3


@dataclass(frozen=True, slots=True)
class KernelEvidence:
    """The kernel's own variables about encryption; None for each that the kernel does not have.

    Attributes:
        sme_me_mask: the C-bit as a mask (4.14 and later), 0 while or where it is not in use.
        sev_status: MSR C001_0131 as read by sme_enable() (5.10 and later; before, 1 for a true
            ``sev_enabled``).
        cc_mask: the bit of coco/core.c (5.18 and later).
        physical_mask: physical address bits that the kernel uses (mm/pgtable.c).
        cc_vendor: ``"AMD"``, ``"INTEL"``, ``"HYPERV"`` or ``"NONE"``, the enumerator's name without
            CC_VENDOR_: the numbers differ between 6.1 and 6.12.
    """

    sme_me_mask: int | None = None
    sev_status: int | None = None
    cc_mask: int | None = None
    physical_mask: int | None = None
    cc_vendor: str | None = None

    def sev(self, bit: int) -> bool:
        """Whether ``bit``, a mask, is set in sev_status."""
        return bool((self.sev_status or 0) & bit)

    @property
    def c_bit_mask(self) -> int:
        """AMD's C-bit as a mask, 0 when it is not in use.

        sme_me_mask says it. Where that variable is not to be had, cc_mask of an AMD system, then
        the bit that sme_enable() took out of physical_mask. Taken as it stands in memory: it may
        have more than one bit when the symbols are those of another kernel.
        """
        if self.sme_me_mask is not None:
            return self.sme_me_mask
        if self.cc_vendor == "AMD" and self.cc_mask is not None:
            return self.cc_mask
        if self.cc_vendor in (None, "AMD") and self.physical_mask is not None:
            return PHYSICAL_MASK & ~self.physical_mask
        return 0


@dataclass(frozen=True, slots=True)
class Encryption:
    """How memory is encrypted on a system.

    Attributes:
        scheme: the scheme's name in the registry: ``"sme"``.
        title: its name for people: ``"AMD SME"``.
        bit: the bit of page-table entries that goes with it.
        guest: whether the system is a guest, encrypted against its host.
    """

    scheme: str
    title: str
    bit: EncryptionBit
    guest: bool


class Scheme(Protocol):
    """What a scheme's module holds.

    ``NAME`` and ``TITLE`` become `Encryption.scheme` and `Encryption.title`; ``GUEST`` its
    ``guest``; ``SET_IS_ENCRYPTED`` is the polarity of the bit.
    """

    @property
    def NAME(self) -> str: ...
    @property
    def TITLE(self) -> str: ...
    @property
    def GUEST(self) -> bool: ...
    @property
    def SET_IS_ENCRYPTED(self) -> bool: ...
    def detect(self, evidence: KernelEvidence, /) -> Encryption | None: ...


def single_bit(mask: int, source: str, set_is_encrypted: bool = True) -> EncryptionBit:
    """The encryption bit that ``mask`` says.

    Args:
        mask: exactly one bit, 32 to 51.
        source: where the mask was read, for the error: ``"sme_me_mask"``.
        set_is_encrypted: the bit's polarity.

    Raises:
        AddressError: ``mask`` is not one bit in that range.
    """
    if mask & (mask - 1) or not 1 << LOWEST_BIT <= mask <= 1 << HIGHEST_BIT:
        raise AddressError(
            f"{source} is {mask:#x}, not a single bit from {LOWEST_BIT} to {HIGHEST_BIT}: "
            "check that the symbols are those of the running kernel"
        )
    return EncryptionBit(mask, set_is_encrypted)

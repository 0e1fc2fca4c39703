# SPDX-License-Identifier: GPL-2.0-or-later
"""Secure Encrypted Virtualization: a guest whose memory is encrypted with a key of its own.

The C-bit is set in an entry for memory that is private to the guest; instruction fetches and page
walks are private whatever it says (APM volume 2, section 15.34). Seen by MSR C001_0131 bit 0, which
sme_enable() keeps in sev_status (arch/x86/coco/core.c, CC_ATTR_GUEST_MEM_ENCRYPT, 6.1 and 6.12).
"""

from __future__ import annotations

from gdb_sme.encryption.scheme import SEV_ENABLED, Encryption, KernelEvidence, single_bit

NAME = "sev"
TITLE = "AMD SEV"
GUEST = True
SET_IS_ENCRYPTED = True


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """SEV when there is a C-bit and SEV is enabled.

    Raises:
        AddressError: the mask is not a single bit.
    """
    mask = evidence.c_bit_mask
    if not mask or not evidence.sev(SEV_ENABLED):
        return None
    return Encryption(NAME, TITLE, single_bit(mask, "sme_me_mask"), GUEST)

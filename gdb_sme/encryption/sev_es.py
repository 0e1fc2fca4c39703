# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV with Encrypted State: the registers are hidden from the host as well.

Page tables are those of SEV. Seen by MSR C001_0131 bit 1 (arch/x86/coco/core.c,
CC_ATTR_GUEST_STATE_ENCRYPT, 6.1 and 6.12; APM volume 2, section 15.35).
"""

from __future__ import annotations

from gdb_sme.encryption.scheme import SEV_ES_ENABLED, Encryption, KernelEvidence, single_bit

NAME = "sev-es"
TITLE = "AMD SEV-ES"
GUEST = True
SET_IS_ENCRYPTED = True


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """SEV-ES when there is a C-bit and encrypted state is enabled.

    Raises:
        AddressError: the mask is not a single bit.
    """
    mask = evidence.c_bit_mask
    if not mask or not evidence.sev(SEV_ES_ENABLED):
        return None
    return Encryption(NAME, TITLE, single_bit(mask, "sme_me_mask"), GUEST)

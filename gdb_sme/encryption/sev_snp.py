# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV with Secure Nested Paging: the reverse map table protects integrity.

Page tables are those of SEV; whether a page is private is the business of the C-bit and of the
reverse map table together, and the table cannot be read by the guest. Seen by MSR C001_0131 bit 2
(arch/x86/coco/core.c, CC_ATTR_GUEST_SEV_SNP, 6.1 and 6.12; APM volume 2, section 15.36).
"""

from __future__ import annotations

from gdb_sme.encryption.scheme import SEV_SNP_ENABLED, Encryption, KernelEvidence, single_bit

NAME = "sev-snp"
TITLE = "AMD SEV-SNP"
GUEST = True
SET_IS_ENCRYPTED = True


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """SEV-SNP when there is a C-bit and nested paging is secured.

    Raises:
        AddressError: the mask is not a single bit.
    """
    mask = evidence.c_bit_mask
    if not mask or not evidence.sev(SEV_SNP_ENABLED):
        return None
    return Encryption(NAME, TITLE, single_bit(mask, "sme_me_mask"), GUEST)

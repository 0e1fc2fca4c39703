# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV-SNP with a virtual top of memory (vTOM), as Hyper-V runs Linux.

There is no C-bit: sme_me_mask is 0. A page at or above the boundary, a power of two in cc_mask, is
shared with the host, so the boundary acts as a bit that means *not* encrypted when it is set
(6.12: arch/x86/hyperv/ivm.c hv_vtom_init(), arch/x86/coco/core.c cc_mkenc(); APM volume 2, section
15.36.8). sev_status holds MSR C001_0131 bit 3 alone. In 6.1 the vendor is CC_VENDOR_HYPERV and the
page tables carry no such bit (arch/x86/coco/core.c).
"""

from __future__ import annotations

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.encryption.scheme import SNP_VTOM, Encryption, KernelEvidence, single_bit

NAME = "vtom"
TITLE = "AMD SEV-SNP with vTOM"
GUEST = True
SET_IS_ENCRYPTED = False


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """vTOM when sev_status says so and the boundary is known, or the vendor is Hyper-V.

    Raises:
        AddressError: the boundary is not a single bit.
    """
    if evidence.cc_vendor == "HYPERV" and not evidence.cc_mask:
        return Encryption(NAME, TITLE, EncryptionBit(0, SET_IS_ENCRYPTED), GUEST)
    if not evidence.cc_mask or not evidence.sev(SNP_VTOM):
        return None
    bit = single_bit(evidence.cc_mask, "cc_mask", SET_IS_ENCRYPTED)
    return Encryption(NAME, TITLE, bit, GUEST)

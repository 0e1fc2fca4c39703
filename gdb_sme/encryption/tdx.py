# SPDX-License-Identifier: GPL-2.0-or-later
"""Intel Trust Domain Extensions: a guest whose memory is private unless it is shared.

The shared bit is the highest bit of the guest's physical address width: cc_mask = 1 << (width - 1),
sme_me_mask stays 0, and physical_mask is cut to the bits below it (tdx_early_init() in
arch/x86/coco/tdx/tdx.c, 6.1 and 6.12). A page is encrypted when the bit is *clear*, so entries that
point to tables carry nothing.
"""

from __future__ import annotations

from gdb_sme.encryption.scheme import Encryption, KernelEvidence, single_bit

NAME = "tdx"
TITLE = "Intel TDX"
GUEST = True
SET_IS_ENCRYPTED = False


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """TDX when the vendor is Intel and there is a mask.

    Raises:
        AddressError: cc_mask is not a single bit.
    """
    if evidence.cc_vendor != "INTEL" or not evidence.cc_mask:
        return None
    bit = single_bit(evidence.cc_mask, "cc_mask", SET_IS_ENCRYPTED)
    return Encryption(NAME, TITLE, bit, GUEST)

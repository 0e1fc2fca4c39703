# SPDX-License-Identifier: GPL-2.0-or-later
"""Secure Memory Encryption: a host that encrypts its own memory.

The C-bit is set in every entry and in CR3 where memory is encrypted (APM volume 2, section 7.10).
sme_enable() takes this path when CPUID 8000_001F EAX bit 0 and MSR C001_0010 (SYSCFG) bit 23 are
set, no hypervisor announces itself, and the command line asks for it; sme_me_mask is the bit of
CPUID 8000_001F EBX[5:0] (arch/x86/mm/mem_encrypt_identity.c, 6.1 and 6.12). The kernel tells it
from SEV by a mask without MSR C001_0131 bit 0 (arch/x86/coco/core.c, CC_ATTR_HOST_MEM_ENCRYPT).
"""

from __future__ import annotations

from gdb_sme.encryption.scheme import SEV_ENABLED, Encryption, KernelEvidence, single_bit

NAME = "sme"
TITLE = "AMD SME"
GUEST = False
SET_IS_ENCRYPTED = True


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """SME when there is a C-bit and SEV is not enabled.

    Raises:
        AddressError: the mask is not a single bit.
    """
    mask = evidence.c_bit_mask
    if not mask or evidence.sev(SEV_ENABLED):
        return None
    return Encryption(NAME, TITLE, single_bit(mask, "sme_me_mask"), GUEST)

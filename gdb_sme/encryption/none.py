# SPDX-License-Identifier: GPL-2.0-or-later
"""No encryption: no mask is in use. It matches always, so it stands last in the registry.

It is also the answer before sme_enable() has run, since the kernel's masks start as zero
(arch/x86/mm/mem_encrypt_identity.c, 6.1 and 6.12).
"""

from __future__ import annotations

from gdb_sme.core.cbit import NO_ENCRYPTION
from gdb_sme.encryption.scheme import Encryption, KernelEvidence

NAME = "none"
TITLE = "no memory encryption"
GUEST = False
SET_IS_ENCRYPTED = True


def detect(evidence: KernelEvidence, /) -> Encryption | None:
    """No encryption, whatever the evidence: nothing else matched."""
    return Encryption(NAME, TITLE, NO_ENCRYPTION, GUEST)

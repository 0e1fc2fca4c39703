# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scheme that gdb_sme knows, in the order in which they are asked.

The order matters: SEV-SNP implies SEV-ES and SEV, and vTOM is a kind of SEV-SNP, so the stricter
ones come first; ``none`` matches always and comes last.
"""

from __future__ import annotations

from gdb_sme.core.cbit import NO_ENCRYPTION
from gdb_sme.encryption import none, sev, sev_es, sev_snp, sme, tdx, vtom
from gdb_sme.encryption.scheme import Encryption, KernelEvidence, Scheme, single_bit
from gdb_sme.errors import AddressError, UsageError

SCHEMES: tuple[Scheme, ...] = (vtom, sev_snp, sev_es, sev, sme, tdx, none)


def detect(evidence: KernelEvidence) -> Encryption:
    """The scheme that the kernel's variables show.

    Raises:
        AddressError: a mask in use is not a single bit from 32 to 51.
    """
    found = (scheme.detect(evidence) for scheme in SCHEMES)
    return next(encryption for encryption in found if encryption is not None)


def by_name(name: str, c_bit: int | None = None) -> Encryption:
    """A scheme as the user names it, where there is no kernel to ask.

    Args:
        name: a scheme's name: ``"sme"``, ``"sev"``, ..., ``"none"``.
        c_bit: the position of the encryption bit, 32 to 51; not used by ``"none"``.

    Raises:
        UsageError: no scheme has this name, or its bit is missing.
        AddressError: the bit cannot be there.
    """
    scheme = next((scheme for scheme in SCHEMES if name == scheme.NAME), None)
    if scheme is None:
        known = ", ".join(scheme.NAME for scheme in SCHEMES)
        raise UsageError(f"no encryption scheme {name!r}: use one of {known}")
    if scheme.NAME == none.NAME:
        return Encryption(scheme.NAME, scheme.TITLE, NO_ENCRYPTION, scheme.GUEST)
    if c_bit is None:
        raise UsageError(f"{scheme.TITLE} needs the position of its bit: give a C-bit, 47 or 51")
    if not 0 <= c_bit < 64:
        raise AddressError(f"{c_bit} is no bit of a page-table entry: give a C-bit from 32 to 51")
    bit = single_bit(1 << c_bit, f"the mask of C-bit {c_bit}", scheme.SET_IS_ENCRYPTED)
    return Encryption(scheme.NAME, scheme.TITLE, bit, scheme.GUEST)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Schemes from kernel variables as they are on such systems (arch/x86/coco/core.c and others)."""

from __future__ import annotations

import pytest

from gdb_sme.core.cbit import EncryptionBit
from gdb_sme.encryption import registry
from gdb_sme.encryption.scheme import KernelEvidence
from gdb_sme.errors import AddressError, UsageError

C47, C51 = 1 << 47, 1 << 51


def amd(mask: int, sev_status: int) -> KernelEvidence:
    return KernelEvidence(mask, sev_status, mask, ((1 << 52) - 1) & ~mask, "AMD")


@pytest.mark.parametrize(
    ("evidence", "scheme", "bit", "guest"),
    [
        # measured on Debian's 6.1 under QEMU
        (amd(C47, 0), "sme", EncryptionBit(C47), False),
        (amd(C47, 1), "sev", EncryptionBit(C47), True),
        (amd(C51, 3), "sev-es", EncryptionBit(C51), True),
        (amd(C51, 7), "sev-snp", EncryptionBit(C51), True),
        # 6.12 sets the vendor on every AMD CPU
        (amd(0, 0), "none", EncryptionBit(0), False),
        # sme_enable() has written sev_status and not yet the mask
        (amd(0, 1), "none", EncryptionBit(0), False),
        (KernelEvidence(), "none", EncryptionBit(0), False),
        # 4.14 to 5.17: no cc_mask and no vendor
        (KernelEvidence(sme_me_mask=C47), "sme", EncryptionBit(C47), False),
        (KernelEvidence(sme_me_mask=C47, sev_status=1), "sev", EncryptionBit(C47), True),
        # the variable is not to be had: what else tells the mask
        (KernelEvidence(cc_mask=C47, cc_vendor="AMD"), "sme", EncryptionBit(C47), False),
        (KernelEvidence(physical_mask=0x000F7FFFFFFFFFFF), "sme", EncryptionBit(C47), False),
        (KernelEvidence(physical_mask=0x000FFFFFFFFFFFFF), "none", EncryptionBit(0), False),
        # hv_vtom_init() of 6.12 with the boundary at 1 << 46
        (
            KernelEvidence(0, 8, 1 << 46, (1 << 46) - 1, "AMD"),
            "vtom",
            EncryptionBit(1 << 46, set_is_encrypted=False),
            True,
        ),
        # Hyper-V in 6.1: no bit in the page tables
        (
            KernelEvidence(0, 0, 0, (1 << 52) - 1, "HYPERV"),
            "vtom",
            EncryptionBit(0, set_is_encrypted=False),
            True,
        ),
        # tdx_early_init() with a guest physical address width of 52
        (
            KernelEvidence(0, 0, C51, C51 - 1, "INTEL"),
            "tdx",
            EncryptionBit(C51, set_is_encrypted=False),
            True,
        ),
        (KernelEvidence(0, 0, 0, (1 << 52) - 1, "INTEL"), "none", EncryptionBit(0), False),
    ],
)  # fmt: skip
def test_detect(evidence: KernelEvidence, scheme: str, bit: EncryptionBit, guest: bool) -> None:
    encryption = registry.detect(evidence)
    assert (encryption.scheme, encryption.bit, encryption.guest) == (scheme, bit, guest)
    assert encryption.title


@pytest.mark.parametrize("sev_status", [0, 1, 3, 7])
@pytest.mark.parametrize("mask", [C47 | C51, 1 << 52, 1 << 12, 0xCCCCCCCCCCCCCCCC])
def test_a_mask_that_is_no_single_address_bit(mask: int, sev_status: int) -> None:
    with pytest.raises(AddressError) as error:
        registry.detect(amd(mask, sev_status))
    assert f"sme_me_mask is {mask:#x}, not a single bit" in str(error.value)


@pytest.mark.parametrize(
    "evidence",
    [
        KernelEvidence(0, 8, 3 << 46, None, "AMD"),
        KernelEvidence(0, 0, 3 << 46, None, "INTEL"),
    ],
)
def test_a_boundary_that_is_no_single_bit(evidence: KernelEvidence) -> None:
    with pytest.raises(AddressError, match="cc_mask is 0xc00000000000, not a single bit"):
        registry.detect(evidence)


@pytest.mark.parametrize("name", ["sme", "sev", "sev-es", "sev-snp"])
def test_by_name_amd(name: str) -> None:
    encryption = registry.by_name(name, 51)
    assert (encryption.scheme, encryption.bit) == (name, EncryptionBit(C51))
    assert encryption.guest is (name != "sme")


@pytest.mark.parametrize("name", ["vtom", "tdx"])
def test_by_name_of_a_shared_bit(name: str) -> None:
    assert registry.by_name(name, 47).bit == EncryptionBit(C47, set_is_encrypted=False)


@pytest.mark.parametrize("c_bit", [None, 47])
def test_by_name_none(c_bit: int | None) -> None:
    assert registry.by_name("none", c_bit).bit == EncryptionBit(0)


def test_by_name_of_nothing_known() -> None:
    with pytest.raises(UsageError) as error:
        registry.by_name("mktme", 47)
    assert str(error.value) == (
        "no encryption scheme 'mktme': "
        "use one of vtom, sev-snp, sev-es, sev, sme, tdx, none"
    )  # fmt: skip


def test_by_name_without_its_bit() -> None:
    with pytest.raises(UsageError, match="AMD SME needs the position of its bit"):
        registry.by_name("sme")


@pytest.mark.parametrize("c_bit", [-1, 0, 31, 52, 63, 64])
def test_by_name_with_a_bit_that_cannot_be(c_bit: int) -> None:
    with pytest.raises(AddressError):
        registry.by_name("sme", c_bit)


@pytest.mark.parametrize("c_bit", [32, 43, 51])
def test_by_name_at_the_limits(c_bit: int) -> None:
    assert registry.by_name("sme", c_bit).bit.position == c_bit

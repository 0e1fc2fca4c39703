# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables as guests of every scheme have them, from the kernel's variables to walks and dumps.

SEV-ES, SEV-SNP and TDX cannot be run here: the tables are made for them.
"""

from __future__ import annotations

import pytest

from gdb_sme.core.paging import LEVEL4
from gdb_sme.core.scan import scan
from gdb_sme.core.walk import walk
from gdb_sme.encryption import registry
from gdb_sme.encryption.scheme import KernelEvidence
from tests.fakes import FakePhys, entries

C51, S47 = 1 << 51, 1 << 47
PRIVATE, SHARED = 0x5000, 0x6000


def amd(sev_status: int) -> KernelEvidence:
    return KernelEvidence(C51, sev_status, C51, ((1 << 51) - 1), "AMD")


TDX = KernelEvidence(0, 0, S47, S47 - 1, "INTEL")
VTOM = KernelEvidence(0, 8, S47, None, "AMD")
PLAIN = KernelEvidence(0, 0, 0, None, "NONE")


@pytest.mark.parametrize(
    ("evidence", "scheme", "table_bit", "private_bit", "shared_bit"),
    [
        (amd(0), "sme", C51, C51, 0),
        (amd(1), "sev", C51, C51, 0),
        (amd(3), "sev-es", C51, C51, 0),
        (amd(7), "sev-snp", C51, C51, 0),
        # Tables are private without a bit; the shared page alone has one.
        (TDX, "tdx", 0, 0, S47),
        (VTOM, "vtom", 0, 0, S47),
    ],
)
def test_private_and_shared_pages(
    evidence: KernelEvidence, scheme: str, table_bit: int, private_bit: int, shared_bit: int
) -> None:
    found = registry.detect(evidence)
    assert found.scheme == scheme
    tables = {
        0x1000: entries({0: 0x2067 | table_bit}),
        0x2000: entries({0: 0x3067 | table_bit}),
        0x3000: entries({0: 0x4067 | table_bit}),
        0x4000: entries({0: PRIVATE | 0x67 | private_bit, 1: SHARED | 0x67 | shared_bit}),
    }
    memory = FakePhys(tables)
    for va, pa, encrypted in ((0x10, PRIVATE + 0x10, True), (0x1020, SHARED + 0x20, False)):
        walked = walk(memory, va, 0x1000, LEVEL4, found.bit)
        assert walked.mapping is not None
        assert (walked.mapping.pa, walked.mapping.encrypted) == (pa, encrypted)
        assert [step.entry.encrypted for step in walked.steps] == [True] * 3 + [encrypted]
    ranges = scan(memory, 0x1000, LEVEL4, found.bit).ranges
    assert [(each.va, each.pa, each.size, each.attributes.encrypted) for each in ranges] == [
        (0, PRIVATE, 4096, True),
        (4096, SHARED, 4096, False),
    ]


def test_without_encryption_the_two_pages_are_one_range() -> None:
    found = registry.detect(PLAIN)
    tables = {
        0x1000: entries({0: 0x2067}),
        0x2000: entries({0: 0x3067}),
        0x3000: entries({0: 0x4067}),
        0x4000: entries({0: PRIVATE | 0x67, 1: SHARED | 0x67}),
    }
    ranges = scan(FakePhys(tables), 0x1000, LEVEL4, found.bit).ranges
    assert [(each.va, each.pa, each.size, each.attributes.encrypted) for each in ranges] == [
        (0, PRIVATE, 8192, False)
    ]

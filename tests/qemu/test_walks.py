# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks against QEMU's own: ``gva2gpa`` and ``info tlb``, which know nothing of this project."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import SharedSessions
from tests.qemu import inside

MACHINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "6.1-plain-shell": ("debian-6.1", "none", {"until": "shell"}),
    "6.1-sme47-early": ("debian-6.1", "sme", {"until": "start_kernel"}),
    "6.1-sme51-la57-shell": (
        "debian-6.1", "sme", {"until": "shell", "c_bit": 51, "la57": True}
    ),
    "6.12-plain-la57-early": ("debian-6.12", "none", {"until": "start_kernel", "la57": True}),
    "6.12-sme47-smp2-shell": ("debian-6.12", "sme", {"until": "shell", "smp": 2}),
}  # fmt: skip

_LINE = re.compile(r"^([0-9a-f]{16}): ([0-9a-f]{16}) ([-XGPDACTUW]{9})$", re.MULTILINE)
#: The letters of `info tlb` and the bits that they stand for (QEMU, target/i386/monitor.c).
_LETTERS = {"X": 63, "G": 8, "P": 7, "D": 6, "A": 5, "C": 4, "T": 3, "U": 2, "W": 1}
#: The address bits that `info tlb` prints, which do not reach a C-bit above 49.
_SHOWN = 0x3FFFFFFFFF000
_GVA2GPA = 1500


@pytest.fixture(scope="module", params=MACHINES)
def session(request: pytest.FixtureRequest, booted: SharedSessions) -> Session:
    image, encryption, settings = MACHINES[request.param]
    return booted(image, encryption, **settings)


def info_tlb(session: Session) -> list[tuple[int, int, str]]:
    """Every page that QEMU finds in the tables: virtual address, address field, letters."""
    text = session.machine.qmp.hmp("info tlb")
    return [(int(va, 16), int(pa, 16), letters) for va, pa, letters in _LINE.findall(text)]


def gva2gpa(session: Session, va: int) -> int | None:
    answer = session.machine.qmp.hmp(f"gva2gpa {va:#x}")
    match = re.match(r"gpa: 0x([0-9a-f]+)", answer)
    assert match or answer.startswith("Unmapped"), answer
    return int(match[1], 16) if match else None


def mask(session: Session) -> int:
    return session.machine.layout.enc_mask


def test_every_page_of_info_tlb_is_walked_to_with_its_flags(session: Session) -> None:
    pages = info_tlb(session)
    assert len(pages) > (500 if session.machine.shell_reached() else 10)
    walked = inside.call(session, "walks", addresses=[va for va, _, _ in pages])
    wrong = []
    for (va, field, letters), walk in zip(pages, walked, strict=True):
        bits = sum(1 << _LETTERS[letter] for letter in letters if letter != "-")
        known = sum(1 << bit for bit in _LETTERS.values())
        if isinstance(walk, str):
            wrong.append(f"{va:#x}: QEMU {field:#x} {letters}, walk {walk}")
            continue
        pa, size, encrypted, raw = walk
        shown = (pa | (mask(session) if encrypted else 0)) & _SHOWN
        if (shown, raw & known) != (field & ~(size - 1), bits):
            wrong.append(f"{va:#x}: QEMU {field:#x} {letters}, walk {pa:#x} {raw:#x}")
    assert wrong == []


def test_addresses_anywhere_translate_as_gva2gpa_does(session: Session) -> None:
    chance = random.Random(47)
    pages = info_tlb(session)
    five = session.machine.config.la57
    mapped = [
        chance.choice(pages)[0] + chance.randrange(1 << chance.choice((12, 12, 21)))
        for _ in range(_GVA2GPA)
    ]
    top = 57 if five else 48
    elsewhere = [chance.randrange(1 << (top - 1)) for _ in range(200)]
    elsewhere += [(1 << 64) - 1 - va for va in elsewhere]
    near = [va + (1 << 21) for va, _, _ in chance.sample(pages, min(200, len(pages)))]
    addresses = [va for va in mapped + elsewhere + near if va < 1 << 64]
    walked = inside.call(session, "walks", addresses=addresses)
    wrong = []
    for va, walk in zip(addresses, walked, strict=True):
        expected = gva2gpa(session, va)
        got = None
        if not isinstance(walk, str):
            got = walk[0] | (mask(session) if walk[2] else 0)
        if got != expected:
            wrong.append(f"{va:#x}: QEMU {expected}, walk {walk}")
    assert wrong == []
    found = [walk for walk in walked if not isinstance(walk, str)]
    assert len(found) > _GVA2GPA / 2
    if session.machine.shell_reached():
        assert {walk[1] for walk in found} >= {4096, 2 << 20}
        assert {walk[2] for walk in found} == ({True, False} if mask(session) else {False})


def test_the_stub_and_the_fast_way_read_the_same(session: Session) -> None:
    pages = info_tlb(session)
    addresses = [va for va, _, _ in random.Random(6).sample(pages, min(200, len(pages)))]
    assert inside.call(session, "walks", addresses=addresses) == inside.call(
        session, "walks", addresses=addresses, stub=True
    )


def test_sme_pte_says_what_the_walk_says(session: Session) -> None:
    for va, _, _ in random.Random(12).sample(info_tlb(session), 8):
        document = json.loads(session.gdb.execute(f"sme pte --json {va:#x}"))
        (walk,) = inside.call(session, "walks", addresses=[va])
        pa, size, encrypted, raw = walk
        assert int(document["pa"], 16) == pa
        assert (document["page_size"], document["encrypted"]) == (size, encrypted)
        assert int(document["levels"][-1]["raw"], 16) == raw

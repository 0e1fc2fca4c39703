# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults in a standing guest: physical words overwritten through QEMU's stub, and put back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gdb_sme.harness.boot import Session


def answer(session: Session, command: str) -> dict[str, Any]:
    """The JSON of a command, whether or not it ends in an error."""
    found: dict[str, Any] = json.loads(session.gdb.run(f"{command} --json").output)
    return found


def _packet(session: Session, packet: str) -> str:
    said = session.gdb.execute(f"maint packet {packet}")
    match = re.search(r'^received: "(.*)"$', said, re.MULTILINE)
    assert match, said
    return match[1]


@contextmanager
def _physical(session: Session) -> Iterator[None]:
    assert _packet(session, "Qqemu.PhyMemMode:1") == "OK"
    try:
        yield
    finally:
        assert _packet(session, "Qqemu.PhyMemMode:0") == "OK"


def word(session: Session, pa: int) -> int:
    """The 64-bit word at physical ``pa``."""
    with _physical(session):
        return int.from_bytes(bytes.fromhex(_packet(session, f"m{pa:x},8")), "little")


def put(session: Session, pa: int, value: int) -> None:
    """Overwrite the 64-bit word at physical ``pa``; what the extension read before is forgotten."""
    with _physical(session):
        assert _packet(session, f"M{pa:x},8:{value.to_bytes(8, 'little').hex()}") == "OK"
    session.gdb.execute("maint flush dcache")
    session.gdb.execute("python from gdb_sme.target.session import SESSIONS; SESSIONS.forget()")


@contextmanager
def overwritten(session: Session, pa: int, value: int) -> Iterator[None]:
    """The word at physical ``pa`` is ``value`` while the block runs."""
    before = word(session, pa)
    put(session, pa, value)
    try:
        yield
    finally:
        put(session, pa, before)
        assert word(session, pa) == before


def entry(session: Session, va: int, up: int = 0, root: str = "") -> tuple[int, int]:
    """Physical address and value of the entry ``up`` levels above the last one for ``va``.

    ``root`` is as for `sme pte --root`; empty for what CR3 holds.
    """
    option = f"--root {root} " if root else ""
    level = answer(session, f"sme pte {option}{va:#x}")["levels"][-1 - up]
    return int(level["entry_pa"], 16), int(level["raw"], 16)


def rules(session: Session, *names: str) -> dict[str, dict[str, Any]]:
    """The verdicts of `sme audit`, of all rules or of ``names``."""
    found = answer(session, " ".join(("sme audit", *names)))["rules"]
    return {each["name"]: each for each in found}


def assert_named(session: Session, rule: str, va: int, where: tuple[int, int], bits: int) -> None:
    """Flip ``bits`` in the entry at ``where``, its physical address and value, that maps ``va``.

    The rule must pass before and after, and name that entry meanwhile.
    """
    pa, raw = where
    assert rules(session, rule)[rule]["verdict"] == "pass"
    with overwritten(session, pa, raw ^ bits):
        said = session.gdb.run(f"sme audit {rule}")
        places = rules(session, rule)[rule]["places"]
    assert said.error == f"sme audit: 1 rule fails: {rule}"
    named = [each for each in places if int(each["entry_pa"], 16) == pa]
    assert named, places
    assert int(named[0]["raw"], 16) == raw ^ bits
    assert int(named[0]["va"], 16) <= va < int(named[0]["end"], 16)
    assert f"{pa:#010x}" in said.output
    assert session.gdb.run(f"sme audit {rule}").error is None

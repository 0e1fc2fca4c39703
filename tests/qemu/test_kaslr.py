# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching to kernels that KASLR has moved: another place at every boot, found with no help."""

from __future__ import annotations

import json
import re

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.images import obtain
from gdb_sme.harness.pytest_plugin import OwnSessions

LINKED = 0xFFFFFFFF81000000
KERNELS = [
    ("debian-6.1", False),
    ("debian-6.1", True),
    ("debian-6.12", False),
    ("debian-6.12", True),
]
BOOTS = 3


def guests_own_word(session: Session) -> dict[str, int]:
    """Addresses by the guest's /proc/kallsyms."""
    names = "_text|init_top_pgt|linux_banner|_end"
    listed = session.shell(f"grep -E ' ({names})$' /proc/kallsyms")
    return {name: int(at, 16) for at, name in re.findall(r"([0-9a-f]{16}) \w (\w+)", listed)}


def check(session: Session) -> int:
    """Everything about one boot; where _text is."""
    own = guests_own_word(session)
    status = json.loads(session.gdb.execute("sme status --json"))
    assert int(status["kernel"]["va"], 16) == own["_text"]
    assert int(status["kernel"]["koff"], 16) == own["_text"] - LINKED
    # What is at the place is this kernel's, byte for byte: QEMU's own translation says so.
    banner = session.machine.qmp.hmp(f"gva2gpa {own['linux_banner']:#x}")
    pa = int(status["kernel"]["pa"], 16) + own["linux_banner"] - own["_text"]
    assert banner.strip() == f"gpa: {pa:#x}"

    before = json.loads(session.gdb.execute(f"sme pte --json {own['init_top_pgt']:#x}"))
    assert before["symbol"] == "init_top_pgt"
    checked = session.gdb.execute("sme cr3")
    moved = own["_text"] - LINKED
    place = f"_text is at {own['_text']:#x}\n"
    said = session.gdb.execute("sme kaslr")
    assert said == (f"symbols moved by {moved:#x}: {place}" if moved else f"nothing moved: {place}")
    assert session.gdb.evaluate("&init_top_pgt") == own["init_top_pgt"]
    assert session.gdb.evaluate("&__per_cpu_start") == 0
    assert session.gdb.execute("sme kaslr") == f"nothing moved: {place}"
    assert json.loads(session.gdb.execute("sme pte --json &init_top_pgt")) == before
    assert session.gdb.execute("sme cr3") == checked
    assert "Linux version" in session.gdb.execute("x/s linux_banner")
    return own["_text"]


@pytest.mark.parametrize(("image", "la57"), KERNELS, ids=str)
def test_every_boot_is_found(boot: OwnSessions, image: str, la57: bool) -> None:
    places = []
    for _ in range(BOOTS):
        session = boot(image, until="shell", kaslr=True, la57=la57)
        session.gdb.timeout = 240  # to read the debug information takes a busy machine minutes
        places.append(check(session))
        session.close()
    assert len(set(places)) > 1, "KASLR chose one place every time"


def test_with_the_c_bit_and_without_symbols(boot: OwnSessions) -> None:
    session = boot("debian-6.12", "sme", until="shell", kaslr=True)
    own = guests_own_word(session)
    session.gdb.execute("symbol-file")
    status = json.loads(session.gdb.execute("sme status --json"))
    assert int(status["kernel"]["va"], 16) == own["_text"]
    assert (status["scheme"], status["c_bit"]) == ("sme", 47)
    assert status["symbols"] == "kallsyms in the kernel's memory"
    walk = json.loads(session.gdb.execute("sme pte --json init_top_pgt"))
    assert int(walk["va"], 16) == own["init_top_pgt"]
    assert walk["encrypted"]


def test_a_wrong_vmlinux_is_told_by_its_build_id(boot: OwnSessions) -> None:
    session = boot("debian-6.1", until="shell", kaslr=True)
    session.gdb.execute(f"symbol-file {obtain('debian-6.12').vmlinux}")
    for command in ("sme kaslr", "sme cr3"):
        failed = session.gdb.run(command)
        assert failed.error is not None
        assert re.search(r"symbols are of another kernel \(build-id [0-9a-f]{40}", failed.error)

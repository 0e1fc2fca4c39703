# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots, differences and reports on a kernel that boots."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

from gdb_sme.harness.gdb import PLUGIN
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions
from tests.qemu.fault import answer, entry, overwritten

C = 1 << 47
DIRECT = 0xFFFF888000000000


def test_mem_encrypt_init_at_work(boot: OwnSessions, tmp_path: Path) -> None:
    session = boot("debian-6.1", "sme", until="reset")
    gdb = session.gdb
    gdb.execute("sme trace start --until start_kernel --quiet")
    gdb.execute("thbreak mem_encrypt_init")
    gdb.execute("continue", timeout=240)
    assert gdb.run("sme audit").error is None
    gdb.execute(f"sme snapshot before --save {tmp_path}/before")
    page = tmp_path / "early.html"
    gdb.execute(f"sme report {page}")
    text = page.read_text()
    assert "Trace of early boot" in text
    assert "early_pmd_flags" in text
    gdb.execute("thbreak rest_init")
    gdb.execute("continue", timeout=240)
    gdb.execute("sme snapshot after")
    changes = answer(session, "sme diff before after --only c-bit")["changes"]
    start = session.gdb.evaluate("io_tlb_default_mem.start")
    end = session.gdb.evaluate("io_tlb_default_mem.end")
    flipped = [
        (int(each["va"], 16) - DIRECT, int(each["end"], 16) - DIRECT)
        for each in changes
        if each["region"] == "direct map"
    ]
    assert min(low for low, _ in flipped) == start
    assert max(high for _, high in flipped) == end
    assert sum(high - low for low, high in flipped) == end - start
    for each in changes:
        assert each["before"]["encrypted"] is True
        assert each["after"]["encrypted"] is False
    # The file says the same as what is in memory.
    assert answer(session, f"sme diff {tmp_path}/before after --only c-bit")["changes"] == changes
    assert answer(session, f"sme diff before {tmp_path}/before")["changes"] == []


def test_two_kernels_in_a_session_without_a_target(booted: SharedSessions, tmp_path: Path) -> None:
    for image in ("debian-6.1", "debian-6.12"):
        booted(image, "sev" if image == "debian-6.12" else "sme", until="shell").gdb.execute(
            f"sme snapshot {image} --save {tmp_path}/{image} --root init_top_pgt"
        )
    said = subprocess.run(
        [
            "gdb", "-nx", "-q", "-batch", "-ex", f"source {PLUGIN}",
            "-ex", f"sme snapshot old --load {tmp_path}/debian-6.1",
            "-ex", f"sme diff old {tmp_path}/debian-6.12 --json",
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = json.loads(said.splitlines()[-1])
    assert found["before"]["kernel"].startswith("Linux version 6.1.")
    assert found["after"]["kernel"].startswith("Linux version 6.12.")
    # The trampoline is encrypted under SEV and not under SME.
    kinds = {kind for each in found["changes"] for kind in each["kinds"]}
    assert {"c-bit", "mapped", "moved"} <= kinds


def test_a_flipped_bit_is_the_one_change(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    session.gdb.execute("sme snapshot quiet")
    assert answer(session, "sme diff quiet")["changes"] == []
    va = DIRECT + 0x10000000
    pa, raw = entry(session, va)
    with overwritten(session, pa, raw & ~C):
        (change,) = answer(session, "sme diff quiet")["changes"]
        shown = session.gdb.execute("sme diff quiet")
    assert change["kinds"] == ["c-bit"]
    assert (int(change["va"], 16), change["size"]) == (va, 2 << 20)
    assert "c-bit C -> -" in shown
    assert "decrypted 2 MiB" in shown
    assert "no difference" in session.gdb.execute("sme diff quiet")


def test_mistakes_are_one_line(booted: SharedSessions, tmp_path: Path) -> None:
    gdb = booted("debian-6.1", "sme", until="shell").gdb
    (tmp_path / "junk").write_bytes(b"junk")
    for command, error in (
        ("sme diff nothing", "sme diff: no snapshot and no file 'nothing'"),
        ("sme snapshot --save /x", "sme snapshot: give the snapshot a name"),
        (f"sme snapshot x --load {tmp_path}/junk", f"sme snapshot: {tmp_path}/junk: no snapshot"),
        ("sme snapshot x --load /nowhere", "sme snapshot: cannot read /nowhere: no such file"),
        ("sme snapshot x --load /a --save /b", "sme snapshot: --load goes with neither"),
        ("sme report /x.pdf", "sme report: /x.pdf: the ending must be one of .html, .svg, .txt"),
        ("sme report /no/where.txt", "sme report: cannot write /no/where.txt: no such file"),
    ):
        said = gdb.run(command).error
        assert said is not None
        assert said.startswith(error), said
        assert "\n" not in said


def test_the_three_reports(booted: SharedSessions, tmp_path: Path) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    va = DIRECT + 0x10000000
    pa, raw = entry(session, va)
    with overwritten(session, pa, raw & ~C):
        for ending in ("html", "svg", "txt"):
            session.gdb.execute(f"sme report {tmp_path}/r.{ending}")
    page, drawing, text = ((tmp_path / f"r.{e}").read_text() for e in ("html", "svg", "txt"))
    for each in (page, drawing, text):
        assert "direct-map-encrypted: no C-bit" in each
        assert f"{va:#x}" in each
    assert "http" not in page.replace("http-equiv", "")
    ET.fromstring(drawing)
    assert f"{pa:#010x}" in text
    for name in (".bss..decrypted", "swiotlb", "real-mode trampoline"):
        assert name in text
        assert name in page

# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels without debug information: a symbol table, a System.map, the kernel's own, nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import SharedSessions


def ask(session: Session, command: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(session.gdb.execute(command))
    return document


@contextmanager
def symbols(session: Session, *commands: str) -> Iterator[None]:
    """gdb without its symbols, or with others, for the length of the block."""
    session.gdb.execute("symbol-file")
    try:
        for command in commands:
            session.gdb.execute(command)
        yield
    finally:
        session.gdb.execute("set sme system-map")
        session.gdb.execute(f"symbol-file {session.machine.config.image.vmlinux}")


@pytest.fixture(params=["debian-6.1", "debian-6.12"])
def running(request: pytest.FixtureRequest, booted: SharedSessions) -> Session:
    session = booted(request.param, "sme", until="shell")
    session.gdb.timeout = 240  # to read the debug information takes a busy machine minutes
    return session


def without_names(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Ranges or views without what symbols add."""
    ranges = document.get("ranges") or [
        view for found in document["found"] for view in found["views"]
    ]
    names = ("symbol", "note", "region")
    return [{key: each[key] for key in each if key not in names} for each in ranges]


def check_commands_that_need_no_symbols(
    session: Session, expected: dict[str, Any], report: Path
) -> None:
    for command, known in expected["plain"].items():
        assert without_names(ask(session, command)) == without_names(known), command
    session.gdb.execute(f"sme report {report}")
    text = report.read_text()
    assert ("AMD SME" in text) == (expected["status"]["c_bit"] is not None)


def plain(session: Session) -> dict[str, Any]:
    """Answers that depend on registers and tables alone."""
    commands = ("sme dump --json", "sme find --json 0x1000000", "sme find --json --conflicts")
    return {command: ask(session, command) for command in commands}


def check_commands_that_need_no_types(session: Session, expected: dict[str, Any]) -> None:
    for argument in ("init_top_pgt", "&init_top_pgt"):
        assert ask(session, f"sme pte --json {argument}")["levels"] == expected["pte"]["levels"]
    found = ask(session, "sme pte --json init_top_pgt+8")
    assert found["symbol"] == "init_top_pgt+0x8"
    status = ask(session, "sme status --json")
    same = ("scheme", "c_bit", "sme_me_mask", "early_pmd_flags", "phys_base", "stage", "kernel")
    assert {key: status[key] for key in same} == {key: expected["status"][key] for key in same}
    check = session.gdb.execute("sme cr3")
    assert "CR3 == __sme_pa(" in check, check


@pytest.fixture
def expected(running: Session) -> dict[str, Any]:
    return {
        "pte": ask(running, "sme pte --json &init_top_pgt"),
        "status": ask(running, "sme status --json"),
        "plain": plain(running),
    }


def test_the_kernels_own_symbols_are_found(
    running: Session, expected: dict[str, Any], tmp_path: Path
) -> None:
    with symbols(running):
        assert "No symbol table" in str(running.gdb.run("print &init_top_pgt").error)
        check_commands_that_need_no_types(running, expected)
        check_commands_that_need_no_symbols(running, expected, tmp_path / "report.txt")
        status = ask(running, "sme status --json")
    assert status["symbols"] == "kallsyms in the kernel's memory"
    assert status["build_id"] == expected["status"]["build_id"]


def test_a_stripped_vmlinux(running: Session, expected: dict[str, Any], tmp_path: Path) -> None:
    vmlinux = running.machine.config.image.vmlinux
    stripped = tmp_path / "vmlinux"
    subprocess.run(["strip", "-g", "-o", stripped, str(vmlinux)], check=True)
    with symbols(running, f"symbol-file {stripped}"):
        check_commands_that_need_no_types(running, expected)
        check_commands_that_need_no_symbols(running, expected, tmp_path / "report.txt")
        assert ask(running, "sme status --json")["symbols"] == str(stripped)
    stripped.unlink()


def system_map(session: Session, path: Path) -> Path:
    vmlinux = session.machine.config.image.vmlinux
    with path.open("wb") as stream:
        subprocess.run(["nm", "-n", str(vmlinux)], stdout=stream, check=True)
    return path


def test_a_system_map(running: Session, expected: dict[str, Any], tmp_path: Path) -> None:
    path = system_map(running, tmp_path / "System.map")
    with symbols(running, f"set sme system-map {path}"):
        check_commands_that_need_no_types(running, expected)
        check_commands_that_need_no_symbols(running, expected, tmp_path / "report.txt")
        assert ask(running, "sme status --json")["symbols"] == str(path)


def test_a_system_map_of_another_kernel(
    booted: SharedSessions, running: Session, tmp_path: Path
) -> None:
    own = running.machine.config.image.name
    other = "debian-6.12" if own == "debian-6.1" else "debian-6.1"
    path = system_map(booted(other, until="reset"), tmp_path / "System.map")
    with symbols(running, f"set sme system-map {path}"):
        failed = running.gdb.run("sme cr3")
        walk = ask(running, "sme pte --json 0xffffffff81000000")
    assert failed.error is not None
    assert "the symbols are of another kernel" in failed.error
    assert walk["outcome"] == "mapped"


@pytest.mark.parametrize(
    ("contents", "says"),
    [(None, "No such file"), ("\x7fELF\x02\n", "is no line of a System.map"), ("", "no _text")],
)
def test_a_system_map_that_is_none(
    booted: SharedSessions, tmp_path: Path, contents: str | None, says: str
) -> None:
    session = booted("debian-6.1", "sme", until="shell")
    path = tmp_path / "System.map"
    if contents is not None:
        path.write_text(contents)
    failed = session.gdb.run(f"set sme system-map {path}")
    assert failed.error is not None
    assert failed.error.startswith("set sme system-map: ")
    assert says in failed.error
    assert "the kernel itself" in session.gdb.execute("show sme system-map")


def test_nothing_at_all_in_early_boot(booted: SharedSessions) -> None:
    """No kernel is in memory at reset: the registers alone answer."""
    session = booted("debian-6.1", until="reset")
    with symbols(session):
        status = ask(session, "sme status --json")
        failed = session.gdb.run("sme pte 0xffffffff81000000")
    assert (status["stage"], status["kernel"], status["symbols"]) == ("reset", None, None)
    assert "paging is off" in str(failed.error)


@pytest.mark.parametrize("encryption", ["none", "sme"])
def test_a_kernel_with_no_symbols_anywhere(
    booted: SharedSessions, tmp_path: Path, encryption: str
) -> None:
    """No vmlinux, and no kallsyms in memory: registers and tables tell, the C-bit is inferred."""
    session = booted("rfc-v2", encryption, until="start_kernel")
    va = session.gdb.evaluate("&init_level4_pgt")
    known = {
        "status": ask(session, "sme status --json"),
        "plain": plain(session),
        "walk": ask(session, f"sme pte --json {va:#x}"),
    }
    with symbols(session):
        status = ask(session, "sme status --json")
        check_commands_that_need_no_symbols(session, known, tmp_path / "report.html")
        assert ask(session, f"sme pte --json {va:#x}")["levels"] == known["walk"]["levels"]
        text = session.gdb.execute("sme status")
        audited = session.gdb.execute("sme audit")
        session.gdb.execute("set sme c-bit 47")
        try:
            told = ask(session, "sme status --json")
        finally:
            session.gdb.execute("set sme c-bit auto")
    same = ("scheme", "c_bit", "levels")
    assert {key: status[key] for key in same} == {key: known["status"][key] for key in same}
    assert (status["symbols"], status["kernel"]) == (None, None)
    if encryption == "sme":
        assert status["c_bit_source"] == "inferred from CR3"
        assert "(inferred from CR3)" in text
    else:
        assert status["c_bit_source"] == "nothing to learn from"
    assert (told["c_bit"], told["c_bit_source"]) == (47, "set sme c-bit")
    assert "no kernel symbols; load them with" in (tmp_path / "report.html").read_text()
    assert "FAIL" not in audited
    assert "pass  masks-agree" not in audited, "no mask is known"
    assert "pass  tables-well-formed" in audited

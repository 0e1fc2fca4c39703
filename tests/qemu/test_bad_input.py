# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person can get wrong with a target: one line says what and what to do, nothing changes.

Without a target: tests/gdb. Tables that are broken: test_pte.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.process import tethered
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions, machine_config


def error(gdb: Gdb, command: str) -> str:
    """The one line, when that is all there is."""
    result = gdb.run(command)
    assert result.output == ""
    assert result.error is not None
    line = result.error.strip()
    assert "\n" not in line
    assert "Traceback" not in line
    return line


def state(session: Session) -> tuple[bytes, str, str]:
    """RAM, QEMU's registers, and gdb's selection."""
    with open(f"/proc/self/fd/{session.machine.ram_fd}", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    registers = session.machine.qmp.hmp("info registers -a")
    return digest, registers, session.gdb.execute("info threads")


@pytest.fixture
def running(booted: SharedSessions) -> Session:
    return booted("debian-6.1", "sme", until="shell")


@pytest.fixture
def unchanged(running: Session) -> Iterator[Session]:
    before = state(running)
    yield running
    assert state(running) == before


def test_no_expression(unchanged: Session) -> None:
    assert error(unchanged.gdb, "sme pte no_such_symbol") == (
        "sme pte: 'no_such_symbol' is not an address (No symbol \"no_such_symbol\" in current "
        "context); give an expression such as 0xffffffff81000000 or &init_top_pgt"
    )
    assert error(unchanged.gdb, "sme pte 1 +").startswith("sme pte: '1 +' is not an address (A syn")
    assert error(unchanged.gdb, "sme pte 1.5") == "sme pte: 1.5 is no whole number; give an address"
    assert "is not an address" in error(unchanged.gdb, "sme pte --root nowhere 0")
    assert "is not an address" in error(unchanged.gdb, "sme pte *(long *)8")


def test_no_physical_address(unchanged: Session) -> None:
    assert error(unchanged.gdb, "sme find &init_top_pgt").endswith(
        " is no physical address: those have 52 bits; for a virtual one see: sme pte, or give a "
        "symbol with --symbol"
    )


@pytest.mark.parametrize("address", [0x1234567890123456, 0x800000000000, 0xFFFF7FFFFFFFFFFF])
def test_not_canonical(unchanged: Session, address: int) -> None:
    assert error(unchanged.gdb, f"sme pte {address:#x}") == (
        f"sme pte: {address:#x} is not canonical (4-level paging: bits 63-47 must be equal)"
    )
    assert "is not canonical" in error(unchanged.gdb, f"print $c_bit({address:#x})")


def test_not_mapped_shows_the_walk_up_to_the_hole(unchanged: Session) -> None:
    lines = unchanged.gdb.execute("sme pte 0x700000000000").splitlines()
    assert lines[2].startswith("CR3 ")
    assert lines[3].startswith("pgd ")
    assert lines[-1].startswith("not mapped: the pgd for 0x0000700000000000-")
    assert error(unchanged.gdb, "print $c_bit(0x700000000000)") == (
        "$c_bit: 0x700000000000 is not mapped; to see why: sme pte 0x700000000000"
    )


def test_an_address_that_has_no_sme_pa(unchanged: Session) -> None:
    for address in ("0x1000", "0xffffc90000000000", "0xffffffffc0000000"):
        assert "is neither in the kernel image nor in the direct map" in error(
            unchanged.gdb, f"print $sme_pa({address})"
        )


def test_the_target_runs(boot: OwnSessions) -> None:
    session = boot("rfc-v2", "sme", until="start_kernel")
    session.gdb.execute("continue &")
    for command in ("sme status", "sme pte 0", "sme cr3", "sme emulate sme", "print $pte(0)"):
        assert error(session.gdb, command).endswith(
            ": the target is running; interrupt it first (Ctrl-C)"
        )
    assert session.machine.qmp.running()


def test_no_symbols(booted: SharedSessions) -> None:
    """And no kallsyms, from which they could be taken."""
    session = booted("rfc-v2", "sme", until="start_kernel")
    before = state(session)
    session.gdb.execute("file")
    session.gdb.execute("symbol-file")
    try:
        assert error(session.gdb, "sme cr3") == (
            "sme cr3: no kernel symbols; load them with: file vmlinux"
        )
        assert "no kernel symbols" in error(session.gdb, "print $sme_pa(0xffffffff81000000)")
        # What needs no symbols works, the C-bit is seen in CR3.
        found = json.loads(session.gdb.execute("sme pte --json 0xffffffff81000000"))
        assert (found["pa"], found["encrypted"]) == ("0x1000000", True)
        found = json.loads(session.gdb.execute("sme status --json"))
        assert (found["c_bit"], found["c_bit_source"]) == (47, "inferred from CR3")
        assert found["symbols"] is None
        lines = session.gdb.execute("sme status").splitlines()
        assert lines[0].startswith("AMD SME  active  C-bit 47")
        assert "symbols  none; load them with: file vmlinux" in lines
        assert "kernel   no kernel symbols; load them with: file vmlinux" in lines
    finally:
        session.gdb.execute(f"file {session.machine.config.image.vmlinux}")
    assert state(session) == before


def test_symbols_of_another_kernel(booted: SharedSessions) -> None:
    # At a breakpoint: gdb 13 aborts (inline_frame_sniffer) when the symbols are exchanged while it
    # stands at the first instruction of an inlined function, as it can in the idle loop.
    running = booted("debian-6.1", "sme", until="start_kernel")
    own = running.machine.config.image
    other = machine_config("debian-6.12").image
    running.gdb.execute(f"file {other.vmlinux}")
    try:
        line = error(running.gdb, "sme cr3")
        assert "the symbols are of another kernel" in line
        assert f"build-id {other.build_id}" in line
        assert line.endswith("load the vmlinux of the running kernel with: file vmlinux")
        found = json.loads(running.gdb.execute("sme status --json"))
        assert found["kernel"] is None
        assert "another kernel" in found["no_kernel"]
        # No value of the wrong symbols' is believed.
        assert found["sme_me_mask"] is None
        assert found["early_pmd_flags"] is None
        assert json.loads(running.gdb.execute("sme pte --json $rsp"))["symbol"] is None
    finally:
        running.gdb.execute(f"file {own.vmlinux}")
    assert json.loads(running.gdb.execute("sme cr3 --json"))["passed"]


def test_a_kernel_without_the_option(boot: OwnSessions, tmp_path: Path) -> None:
    """The symbol file as it is when CONFIG_AMD_MEM_ENCRYPT is off."""
    session = boot("rfc-v2", "none", until="start_kernel")
    vmlinux = session.machine.config.image.vmlinux
    assert vmlinux is not None
    names = subprocess.run(["nm", "-j", vmlinux], capture_output=True, text=True, check=True)
    sme = [name for name in names.stdout.split() if "sme_" in name]
    assert "sme_me_mask" in sme
    without = tmp_path / "vmlinux"
    subprocess.run(
        ["objcopy", "--strip-debug", *(f"--strip-symbol={name}" for name in sme), vmlinux, without],
        check=True,
    )
    session.gdb.execute(f"file {without}")
    lines = session.gdb.execute("sme status").splitlines()
    assert lines[0].split(maxsplit=1) == [
        "encryption",
        "none  no sme_me_mask: a kernel without CONFIG_AMD_MEM_ENCRYPT",
    ]
    line = error(session.gdb, "sme emulate sme")
    assert line.startswith("sme emulate: no symbol sme_enable in ")
    assert "CONFIG_AMD_MEM_ENCRYPT=y" in line
    (check,) = json.loads(session.gdb.execute("sme cr3 --json"))["cpus"]
    assert check["passed"]


def test_qemu_is_gone(boot: OwnSessions) -> None:
    session = boot("rfc-v2", "sme", until="start_kernel")
    session.machine.process.kill()
    session.machine.process.wait()
    for command in ("sme status", "sme cr3", "sme pte &init_level4_pgt"):
        result = session.gdb.run(command)
        if result.error is None:
            continue  # all that it needs was read at this stop already
        assert "\n" not in result.error.strip()
    session.gdb.run("maint flush register-cache")
    session.gdb.run("set $rax = $rax")
    for command in ("sme status", "sme pte &init_level4_pgt"):
        line = error(session.gdb, command)
        assert line.startswith(f"{' '.join(command.split()[:2])}: ")
        assert "connect" in line


def test_qemu_goes_in_the_middle_of_a_command(boot: OwnSessions) -> None:
    session = boot("rfc-v2", "sme", until="start_kernel")
    session.gdb.execute("stepi")
    # It does not answer any more: the command waits for it, and then it is gone.
    os.kill(session.machine.pid, signal.SIGSTOP)
    pending = session.gdb.begin("sme status")
    time.sleep(1)
    session.machine.process.kill()
    result = pending.result()
    assert result.error is not None
    line = result.error.strip().splitlines()[-1]
    assert line.startswith("sme status: ")
    assert "Traceback" not in result.error + result.output
    assert error(session.gdb, "sme status").endswith("/path/of/qemu-gdb.sock")


def test_a_target_that_is_not_x86_64(tmp_path: Path) -> None:
    """QEMU's 32-bit PC at reset."""
    socket = tmp_path / "gdb.sock"
    qemu = subprocess.Popen(
        tethered(
            [
                *("qemu-system-i386", "-nodefaults", "-display", "none", "-S"),
                *("-chardev", f"socket,id=gdb,path={socket},server=on,wait=off"),
                *("-gdb", "chardev:gdb"),
            ]
        )
    )
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with Gdb() as gdb:
            gdb.execute(f"source {PLUGIN}")
            gdb.execute(f"target remote {socket}")
            for command in ("sme status", "sme cr3", "sme pte 0"):
                assert "the target's architecture is i386, not i386:x86-64" in error(gdb, command)
    finally:
        qemu.kill()
        qemu.wait()

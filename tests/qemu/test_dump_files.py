# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of a real guest, against QEMU's stub at the very stop at which they were made."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.core.elf import CoreFile, parse_core
from gdb_sme.harness.boot import Session
from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.images import obtain
from gdb_sme.harness.process import tethered
from gdb_sme.harness.pytest_plugin import SharedSessions
from gdb_sme.linux.vmcoreinfo import parse_vmcoreinfo
from tests.cores import core, note, prstatus
from tests.qemu.kdump import copied_out

C47 = 1 << 47
ADDRESSES = (
    "&init_top_pgt",
    "_text",
    "&__start_bss_decrypted",
    "(unsigned long)page_offset_base + 0x100000",
    "(unsigned long)page_offset_base + 0x2000000",
    "(unsigned long)vmalloc_base",
    "0",
    "0xfffffe0000000000",
)


@pytest.fixture
def live(booted: SharedSessions) -> Session:
    return booted("debian-6.1", "sme", until="shell")


@pytest.fixture
def dump_file(tmp_path: Path) -> Iterator[Path]:
    """Where to dump; half a GiB and more is not kept with pytest's other directories."""
    path = tmp_path / "dump"
    yield path
    path.unlink(missing_ok=True)


@contextmanager
def opened(dump: Path, vmlinux: Path | None) -> Iterator[Gdb]:
    """`gdb vmlinux DUMP`, or `gdb -c DUMP` without symbols."""
    files = [str(vmlinux), str(dump)] if vmlinux else ["-c", str(dump)]
    with Gdb(files, timeout=240) as gdb:
        gdb.execute(f"source {PLUGIN}")
        yield gdb


def vmlinux_of(live: Session) -> Path:
    path = live.machine.config.image.vmlinux
    assert path is not None
    return path


def answers(gdb: Gdb, addresses: list[int], root: str = "") -> list[dict[str, Any]]:
    return [json.loads(gdb.execute(f"sme pte --json {root} {va:#x}")) for va in addresses]


def addresses_of(live: Session) -> list[int]:
    """By the stub: with a dump gdb takes variables out of vmlinux where it has no such memory."""
    return [live.gdb.evaluate(address) for address in ADDRESSES]


MACHINES: dict[str, tuple[str, dict[str, Any]]] = {
    "6.1": ("debian-6.1", {}),
    "6.12-la57-kaslr-2cpus": ("debian-6.12", {"c_bit": 51, "la57": True, "kaslr": True, "smp": 2}),
}
#: Answers that a dump and the stub must have in common, word for word.
COMMANDS = (
    "sme cr3",
    "sme dump --json",
    "sme dump --json --tables --root init_top_pgt",
    "sme find --json --symbol linux_banner",
    "sme find --json --conflicts",
)


def audit(gdb: Gdb) -> Any:
    return json.loads(gdb.execute("sme audit --json").splitlines()[0])["rules"]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("option", ["", "-p "], ids=["physical", "paging"])
def test_qemus_dumps_agree_with_its_stub(
    booted: SharedSessions, dump_file: Path, tmp_path: Path, machine: str, option: str
) -> None:
    image, settings = MACHINES[machine]
    live = booted(image, "sme", until="shell", **settings)
    live.gdb.timeout = 240  # to read the debug information takes a busy machine minutes
    live.gdb.execute("sme kaslr")
    live.machine.qmp.hmp(f"dump-guest-memory {option}{dump_file}")
    status = json.loads(live.gdb.execute("sme status --json"))
    saved = tmp_path / "live.json"
    live.gdb.execute(f"sme snapshot live --save {saved}")
    with opened(dump_file, vmlinux_of(live)) as gdb:
        moved = gdb.execute("sme kaslr")
        assert moved.startswith("symbols moved by " if "kaslr" in settings else "nothing moved: ")
        addresses = addresses_of(live)
        assert answers(gdb, addresses) == answers(live.gdb, addresses)
        for command in COMMANDS:
            assert gdb.execute(command) == live.gdb.execute(command), command
        assert audit(gdb) == audit(live.gdb)
        gdb.execute(f"sme snapshot live --load {saved}")
        assert gdb.execute("sme diff live").splitlines()[-1] == "no difference"
        gdb.execute(f"sme report {tmp_path / 'report.html'}")
        found = json.loads(gdb.execute("sme status --json"))
    assert "memory dump" in (tmp_path / "report.html").read_text()
    same = ("scheme", "c_bit", "c_bit_source", "stage", "levels", "kernel", "phys_base", "build_id")
    assert {key: found[key] for key in same} == {key: status[key] for key in same}
    assert [cpu["efer"] for cpu in found["cpus"]] == [None] * settings.get("smp", 1)
    without = [[{**cpu, "efer": 0} for cpu in each["cpus"]] for each in (found, status)]
    assert without[0] == without[1]
    assert found["target"] == f"QEMU's memory dump {dump_file}"
    assert f"bit {settings.get('c_bit', 47)} taken out" in found["memory"]
    if not option:
        ram = sum(int(end, 16) - int(start, 16) for start, end in found["ram"])
        assert ram == (512 << 20) + (256 << 10), "RAM once, and the firmware's ROM"


def vmcoreinfo_bytes(live: Session) -> bytes:
    """What the guest's own kernel has ready for its crash."""
    at, size = live.gdb.evaluate("vmcoreinfo_data"), live.gdb.evaluate("vmcoreinfo_size")
    pa = at - live.gdb.evaluate("page_offset_base")
    return os.pread(live.machine.ram_fd, size, pa)


def vmcore(live: Session) -> bytes:
    """What kdump makes of the guest: the kernel's note, no control registers, RAM once."""
    vmcoreinfo = vmcoreinfo_bytes(live)
    status = prstatus(
        rip=live.gdb.evaluate("$rip"),
        cs=live.gdb.evaluate("$cs"),
        eflags=2,
        gs_base=live.gdb.evaluate("$gs_base"),
    )
    memory = os.pread(live.machine.ram_fd, live.machine.config.memory, 0)
    direct_map = live.gdb.evaluate("page_offset_base")
    text = parse_vmcoreinfo(vmcoreinfo).symbols["_stext"]
    return core(
        note("CORE", 1, status) + note("VMCOREINFO", 0, vmcoreinfo),
        [(text, 0x1000000, memory[0x1000000:0x2000000]), (direct_map, 0, memory)],
    )


def test_a_vmcore_without_control_registers(live: Session, dump_file: Path) -> None:
    dump_file.write_bytes(vmcore(live))
    with opened(dump_file, vmlinux_of(live)) as gdb:
        found = json.loads(gdb.execute("sme status --json"))
        addresses = addresses_of(live)
        mine = answers(gdb, addresses, "--root init_top_pgt")
        loaded = json.loads(gdb.execute("sme pte --json &init_top_pgt"))
    assert mine == answers(live.gdb, addresses, "--root init_top_pgt")
    # The root is the kernel's own idea of what is loaded, which is what CR3 has.
    expected = json.loads(live.gdb.execute("sme pte --json &init_top_pgt"))
    assert loaded["levels"] == expected["levels"]
    assert "CR3" not in loaded["root"]["source"]
    assert (found["scheme"], found["c_bit"], found["stage"]) == ("sme", 47, "running")
    assert found["kernel"]["found_by"] == "VMCOREINFO"
    assert found["cpus"][0]["cr3"] is None


def test_a_vmcore_with_no_symbols_at_all(live: Session, dump_file: Path) -> None:
    """VMCOREINFO says where the kernel is, and there its own symbols are."""
    dump_file.write_bytes(vmcore(live))
    with opened(dump_file, None) as gdb:
        found = json.loads(gdb.execute("sme status --json"))
        mine = json.loads(gdb.execute("sme pte --json --root init_top_pgt init_top_pgt"))
    expected = json.loads(live.gdb.execute("sme pte --json --root init_top_pgt &init_top_pgt"))
    assert (found["scheme"], found["c_bit"]) == ("sme", 47)
    assert mine["levels"] == expected["levels"]


def test_proc_kcore(live: Session, dump_file: Path) -> None:
    """Its header and notes as the guest has them, with what RAM holds for them.

    No file system can hold all of it: its offsets are as large as the address space.
    """
    live.shell("head -c 24576 /proc/kcore | gzip > /kcore")
    head = copied_out(live, "/kcore")
    assert len(head) == 24576
    found: CoreFile = parse_core(lambda offset, length: head[offset : offset + length], None)
    (vmcoreinfo,) = found.named("VMCOREINFO")
    assert vmcoreinfo.rstrip(b"\0") == vmcoreinfo_bytes(live).rstrip(b"\0")
    direct_map = live.gdb.evaluate("page_offset_base")
    ram = [each for each in found.segments if each.va - each.pa == direct_map]
    assert sum(each.size for each in ram) > (480 << 20)
    assert any(each.pa == (1 << 64) - 1 for each in found.segments), "vmalloc has no one pa"

    notes = b"".join(note(each.name, each.kind, each.data) for each in found.notes)
    segments = [
        (each.va, each.pa, os.pread(live.machine.ram_fd, each.size, each.pa)
         if each.pa < live.machine.config.memory else bytes(4096))
        for each in found.segments
    ]  # fmt: skip
    dump_file.write_bytes(core(notes, segments))
    addresses = addresses_of(live)
    with opened(dump_file, vmlinux_of(live)) as gdb:
        status = json.loads(gdb.execute("sme status --json"))
        mine = answers(gdb, addresses, "--root init_top_pgt")
        audited = [each["name"] for each in audit(gdb) if each["verdict"] == "fail"]
    assert mine == answers(live.gdb, addresses, "--root init_top_pgt")
    expected = json.loads(live.gdb.execute("sme status --json"))["kernel"]
    assert status["kernel"] == {**expected, "found_by": "VMCOREINFO"}
    assert (status["scheme"], status["c_bit"], status["stage"]) == ("sme", 47, "running")
    assert audited == []


def test_a_dump_of_another_kernel(live: Session, dump_file: Path) -> None:
    live.machine.qmp.hmp(f"dump-guest-memory -p {dump_file}")
    other = obtain("debian-6.12").vmlinux
    with opened(dump_file, other) as gdb:
        failed = gdb.run("sme cr3")
        walk = gdb.execute("sme pte 0xffffffff81000000")
    assert failed.error is not None
    assert "the symbols are of another kernel (build-id" in failed.error
    assert "0x01000000  r-x kernel" in walk


#: As `dump-guest-memory -z` begins, and as makedumpfile's own files do.
CONVERTIBLE = pytest.mark.parametrize(
    ("head", "tool"),
    [
        (b"makedumpfile".ljust(16, b"\0"), "makedumpfile -R DUMP < FLATTENED"),
        (b"KDUMP   ", "makedumpfile -E -d 0 /proc/vmcore DUMP"),
    ],
    ids=["flattened", "compressed"],
)


def compressed(path: Path, head: bytes) -> None:
    path.write_bytes(head + struct.pack("<I", 6) + bytes(4096))


@CONVERTIBLE
@pytest.mark.parametrize("given", [["{}"], ["-c", "{}"], ["--core={}"], ["-ex", "core-file {}"]])
def test_a_dump_to_convert_names_the_tool(
    dump_file: Path, head: bytes, tool: str, given: list[str]
) -> None:
    compressed(dump_file, head)
    with Gdb([word.format(dump_file) for word in given]) as gdb:
        gdb.execute(f"source {PLUGIN}")
        failed = gdb.run("sme status")
    assert failed.error is not None
    assert failed.error.startswith(f"sme status: {dump_file}: the dump is ")
    assert tool in failed.error


@CONVERTIBLE
@pytest.mark.parametrize("typed", ["core-file {}", "target core {}"])
def test_a_dump_to_convert_opened_by_hand(
    dump_file: Path, head: bytes, tool: str, typed: str
) -> None:
    compressed(dump_file, head)
    with Gdb() as gdb:
        gdb.execute(f"source {PLUGIN}")
        gdb.child.sendline(typed.format(dump_file))
        gdb.child.expect_exact("file format not recognized")
        failed = gdb.run("sme status")
    assert failed.error is not None
    assert failed.error.startswith(f"sme status: {dump_file}: the dump is ")
    assert tool in failed.error


def test_a_truncated_dump(live: Session, dump_file: Path) -> None:
    live.machine.qmp.hmp(f"dump-guest-memory -p {dump_file}")
    os.truncate(dump_file, 300 << 20)
    with opened(dump_file, None) as gdb:
        failed = gdb.run("sme status")
    assert failed.error is not None
    assert "sme status: the dump is truncated: its segments end at byte 0x" in failed.error
    assert "the file at 0x12c00000" in failed.error


def test_a_dump_from_before_long_mode(booted: SharedSessions, dump_file: Path) -> None:
    at_reset = booted("debian-6.1", until="reset")
    at_reset.machine.qmp.hmp(f"dump-guest-memory {dump_file}")
    with opened(dump_file, None) as gdb:
        failed = gdb.run("sme status")
    assert failed.error is not None
    assert "of a 32-bit machine, or of one that was not in long mode yet" in failed.error


@pytest.mark.parametrize("vmlinux", [False, True], ids=["alone", "with-a-64-bit-vmlinux"])
def test_a_dump_of_a_32_bit_machine(dump_file: Path, vmlinux: bool) -> None:
    """Of a real one; it stands at its reset vector."""
    session = f"""
        {{"execute": "qmp_capabilities"}}
        {{"execute": "dump-guest-memory",
          "arguments": {{"paging": false, "protocol": "file:{dump_file}"}}}}
        {{"execute": "quit"}}
    """
    machine = ["qemu-system-i386", "-nodefaults", "-display", "none", "-S", "-m", "16M"]
    command = tethered([*machine, "-qmp", "stdio"])
    subprocess.run(command, input=session, text=True, check=True, stdout=subprocess.DEVNULL)
    with opened(dump_file, obtain("rfc-v2").vmlinux if vmlinux else None) as gdb:
        for command in ("sme status", "sme pte 0xffffffff81000000", "sme dump", "sme audit"):
            failed = gdb.run(command)
            assert failed.error == (
                f"{' '.join(command.split()[:2])}: the dump is of a 32-bit machine, or of one that "
                "was not in long mode yet; only x86-64 page tables can be shown"
            )

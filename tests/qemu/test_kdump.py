# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kdumps: guests with SME panic, and their vmcores are read.

Judges: the live kernel just before its crash, the raw tables in the guest's RAM, and two programs
with walkers of their own, crash and libkdumpfile.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.kdump import check_vmcore, crashed, panic, write_vmcore
from tests.qemu.oracle import Page, Ram, walk
from tests.qemu.other_tools import crash_walks, libkdumpfile_walks
from tests.qemu.test_dump import pages

SYMBOLS = ("init_top_pgt", "_text", "__start_bss_decrypted", "sme_me_mask")
VARIABLES = ("page_offset_base", "vmalloc_base", "vmemmap_base")
KERNELS: list[tuple[str, str, dict[str, Any]]] = [
    ("debian-6.1", "sme", {}),
    ("debian-6.12", "sme", {"smp": 2, "kaslr": True, "la57": True}),
]


@dataclass(frozen=True)
class Crash:
    """A vmcore, open in gdb, and what is known of the kernel without it."""

    path: Path
    vmlinux: Path
    gdb: Gdb
    addresses: tuple[int, ...]
    status: dict[str, Any]
    walks: list[Any]
    pages: list[Page]

    def ask(self, command: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.gdb.execute(command))
        return document


def levels(gdb: Gdb, va: int) -> Any:
    return json.loads(gdb.execute(f"sme pte --json --root init_top_pgt {va:#x}"))["levels"]


def interesting(gdb: Gdb, koff: int) -> tuple[int, ...]:
    """Addresses in every region of a kernel that lies ``koff`` bytes above its symbols."""
    image = [gdb.evaluate(f"(unsigned long)&{name} + {koff}") for name in SYMBOLS]
    direct_map, vmalloc, vmemmap = (
        gdb.evaluate(f"*(unsigned long *)((unsigned long)&{name} + {koff})") for name in VARIABLES
    )
    cpu_entry_area = 0xFFFFFE0000000000
    return (*image, direct_map + (32 << 20), vmalloc, vmemmap, cpu_entry_area, 0)


@pytest.fixture(scope="module", params=KERNELS, ids=lambda kernel: kernel[0])
def crash(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crash]:
    name, encryption, settings = request.param
    directory = tmp_path_factory.mktemp("kdump")
    path = directory / "vmcore"
    config = machine_config(name, encryption, **settings)
    vmlinux = config.image.vmlinux
    assert vmlinux is not None
    try:
        with crashed(config, directory) as session:
            session.gdb.timeout = 240  # to read debug information takes a busy machine minutes
            status = json.loads(session.gdb.execute("sme status --json"))
            addresses = interesting(session.gdb, int(status["kernel"]["koff"], 16))
            walks = [levels(session.gdb, va) for va in addresses]
            root = int(walks[0][0]["table_pa"], 16)
            panic(session)
            check_vmcore(session, path, write_vmcore(session, path))
            raw = list(walk(Ram(session), root, 5 if config.la57 else 4, 1 << config.c_bit))
        with Gdb([str(vmlinux), str(path)], timeout=240) as gdb:
            gdb.execute(f"source {PLUGIN}")
            yield Crash(path, vmlinux, gdb, addresses, status, walks, raw)
    finally:
        shutil.rmtree(directory)


def test_the_kernel_is_found_by_its_notes(crash: Crash) -> None:
    found = crash.ask("sme status --json")
    assert found["target"] == f"vmcore {crash.path}"
    assert found["kernel"] == {**crash.status["kernel"], "found_by": "VMCOREINFO"}
    same = ("scheme", "c_bit", "c_bit_source", "sme_me_mask", "levels", "phys_base", "build_id")
    assert {key: found[key] for key in same} == {key: crash.status[key] for key in same}
    assert len(found["cpus"]) == len(crash.status["cpus"])
    assert all(cpu["cr3"] is None for cpu in found["cpus"]), "kdump's notes have no CR3"
    assert "no CR3 from this target; the kernel walks " in crash.gdb.execute("sme status")


def test_walks_are_those_of_the_live_kernel(crash: Crash) -> None:
    assert [levels(crash.gdb, va) for va in crash.addresses] == crash.walks
    # With no root named, it is that of the task that crashed.
    va = crash.addresses[0]
    document = crash.ask(f"sme pte --json {va:#x}")
    assert document["root"]["source"].startswith("loaded_mm->pgd of CPU 0, by the kernel's")
    assert document["levels"][1:] == crash.walks[0][1:]


def test_a_dump_is_what_the_raw_tables_say(crash: Crash) -> None:
    dumped = crash.ask("sme dump --json --root init_top_pgt")
    assert dumped["troubles"] == []
    mask = 1 << crash.status["c_bit"]
    assert [(va, pa, each["page_size"], each["encrypted"]) for va, pa, each in pages(
        dumped["ranges"]
    )] == [
        (page.va, page.pa(mask), page.size, bool(page.raw & mask)) for page in crash.pages
    ]  # fmt: skip


def test_cr3_says_that_there_is_none(crash: Crash) -> None:
    said = crash.gdb.execute("sme cr3")
    assert "this target gives no CR3: neither its address nor its C-bit can be checked" in said
    assert "loaded_mm->pgd, task " in said


def test_no_rule_of_the_audit_fails(crash: Crash) -> None:
    """The crash kernel's control pages are unencrypted, and one of them is mapped twice."""
    document = crash.ask("sme audit --json")
    assert [rule for rule in document["rules"] if rule["verdict"] == "fail"] == []
    passed = {rule["name"] for rule in document["rules"] if rule["verdict"] == "pass"}
    assert passed >= {"tables-well-formed", "kernel-half-shared", "no-writable-code"}
    assert passed >= {"direct-map-encrypted", "views-agree", "swiotlb-decrypted"}
    direct = next(rule for rule in document["rules"] if rule["name"] == "direct-map-encrypted")
    assert "crash kernel" in direct["text"]


def test_find_report_and_snapshot(crash: Crash, tmp_path: Path) -> None:
    (found,) = crash.ask("sme find --json --symbol linux_banner")["found"]
    assert {view["region"] for view in found["views"]} == {"direct map", "kernel image"}
    assert all(view["encrypted"] for view in found["views"])
    for name in ("report.html", "report.txt"):
        crash.gdb.execute(f"sme report {tmp_path / name}")
        assert "vmcore" in (tmp_path / name).read_text()
    crash.gdb.execute("sme snapshot dumped")
    assert crash.gdb.execute("sme diff dumped").splitlines()[-1] == "no difference"


@pytest.mark.parametrize("crash", KERNELS[:1], indirect=True, ids=["debian-6.1"])
def test_walks_are_those_of_crash(crash: Crash) -> None:
    """crash takes the C-bit out of what it shows, as it learns it from the same notes."""
    mask = 1 << crash.status["c_bit"]
    kernel = {va: walk for va, walk in zip(crash.addresses, crash.walks, strict=True) if va >> 63}
    said = crash_walks(crash.vmlinux, crash.path, list(kernel))
    assert [entries for entries, _ in said] == [
        [int(level["raw"], 16) & ~mask for level in walk] for walk in kernel.values()
    ]


def test_walks_are_those_of_libkdumpfile(crash: Crash, tmp_path: Path) -> None:
    said = libkdumpfile_walks(tmp_path, crash.path, 0, crash.addresses)
    assert [entries for entries, _ in said] == [
        [raw for level in walk if (raw := int(level["raw"], 16)) & 1] for walk in crash.walks
    ]

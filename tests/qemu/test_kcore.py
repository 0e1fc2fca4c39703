# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb inside a guest with SME, on the guest's own /proc/kcore, against QEMU from the outside."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.kcore import RUN, with_gdb
from tests.qemu.kdump import copied_out
from tests.qemu.oracle import TLB_ADDRESS, info_tlb
from tests.qemu.test_dump import pages

MASK = 1 << 47
#: Mappings of the kernel that stay as they are while gdb runs and ends.
ADDRESSES = (
    "&init_top_pgt",
    "schedule",
    "&__start_bss_decrypted",
    "page_offset_base",
    "page_offset_base + 0x2000000",
    "vmemmap_base",
    "0xfffffe0000000000",
)
WALKS = tuple(f"sme pte --json --root init_top_pgt {address}" for address in ADDRESSES)
STATUS, DUMP = "sme status --json", "sme dump --json --root init_top_pgt"
FIND, AUDIT = "sme find --json --symbol linux_banner", "sme audit --json"
REPORT = "sme report /out/report.txt"


@dataclass(frozen=True)
class Inside:
    """A guest that stands, and what gdb said in it while it ran."""

    session: Session
    said: dict[str, str]
    report: str

    def answer(self, command: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.said[command])
        return document


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    directory = tmp_path_factory.mktemp("kcore")
    commands = (STATUS, *WALKS, DUMP, FIND, AUDIT, REPORT)
    try:
        config = with_gdb(machine_config("debian-6.1", "sme", memory="2G"), directory, commands)
        with Session(config, "shell") as session:
            session.shell(f"{RUN}; tar -cz -f /out.tgz -C /out .", timeout=400)
            with tarfile.open(fileobj=io.BytesIO(copied_out(session, "/out.tgz"))) as archive:
                files = {Path(member.name).name: archive.extractfile(member) for member in archive}
            text = {name: file.read().decode() for name, file in files.items() if file}
            for trouble in ("Traceback", "Python Exception", "Error"):
                assert trouble not in text["gdb"], text["gdb"]
            said = {command: text[str(number)] for number, command in enumerate(commands)}
            yield Inside(session, said, text["report.txt"])
    finally:
        shutil.rmtree(directory)


def test_status(inside: Inside) -> None:
    found = inside.answer(STATUS)
    expected = json.loads(inside.session.gdb.execute(STATUS))
    assert found["target"] == "running kernel's memory /proc/kcore"
    assert found["kernel"] == {**expected["kernel"], "found_by": "VMCOREINFO"}
    same = ("scheme", "c_bit", "c_bit_source", "sme_me_mask", "levels", "phys_base", "build_id")
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    assert found["stage"] == "running"
    (cpu,) = found["cpus"]
    assert cpu["cr3"] is None
    # The task that reads /proc/kcore is the one that runs.
    assert re.fullmatch(r"task \d+ \(gdb\)", cpu["kernels_table"]["detail"])


@pytest.mark.parametrize("command", WALKS, ids=ADDRESSES)
def test_walks_are_those_of_the_stub_and_the_monitor(inside: Inside, command: str) -> None:
    walk, session = inside.answer(command), inside.session
    assert walk["levels"] == json.loads(session.gdb.execute(command))["levels"]
    pa = int(walk["pa"], 16) | (MASK if walk["encrypted"] else 0)
    assert session.machine.qmp.hmp(f"gva2gpa {walk['va']}").strip() == f"gpa: {pa:#x}"


def test_the_kernels_half_is_what_qemus_monitor_lists(inside: Inside) -> None:
    vmalloc = inside.session.gdb.evaluate("vmalloc_base")

    def stays(va: int) -> bool:
        return va >> 63 == 1 and not vmalloc <= va < vmalloc + (32 << 40)

    dumped = inside.answer(DUMP)
    assert dumped["troubles"] == []
    mine = [
        (va, (pa | (MASK if each["encrypted"] else 0)) & TLB_ADDRESS, each["global"])
        for va, pa, each in pages(dumped["ranges"])
    ]
    tlb = [(va, pa, "G" in flags) for va, pa, flags in info_tlb(inside.session)]
    assert [page for page in mine if stays(page[0])] == [page for page in tlb if stays(page[0])]
    assert len([page for page in mine if stays(page[0])]) > 1000


def test_find_audit_and_report(inside: Inside) -> None:
    (found,) = inside.answer(FIND)["found"]
    assert {view["region"] for view in found["views"]} == {"direct map", "kernel image"}
    verdicts = {rule["name"]: rule["verdict"] for rule in inside.answer(AUDIT)["rules"]}
    assert "fail" not in verdicts.values()
    passed = {name for name, verdict in verdicts.items() if verdict == "pass"}
    assert passed >= {"direct-map-encrypted", "views-agree", "swiotlb-decrypted", "mmio-decrypted"}
    assert "/proc/kcore" in inside.report

# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching to kernels that KASLR has moved: another place at every boot, found with no help."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import pytest

from gdb_sme.harness.boot import BOOT_DEADLINE
from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.images import obtain
from gdb_sme.harness.pytest_plugin import OwnSessions, machine_config
from gdb_sme.harness.qemu import Machine

KERNELS = [
    ("debian-6.1", False),
    ("debian-6.1", True),
    ("debian-6.12", False),
    ("debian-6.12", True),
]
BOOTS = 3


@pytest.fixture(scope="module")
def gdbs() -> Iterator[Callable[[str], Gdb]]:
    """A gdb a kernel, which has read its symbols: they outlast the machines."""
    with ExitStack() as stack:
        yield cache(lambda image: stack.enter_context(_gdb(image)))


def _gdb(image: str) -> Gdb:
    gdb = Gdb([str(obtain(image).vmlinux)], timeout=240)  # a busy machine takes minutes to read it
    gdb.execute(f"source {PLUGIN}")
    return gdb


@contextmanager
def attached(gdb: Gdb, image: str, la57: bool) -> Iterator[tuple[Machine, dict[str, int]]]:
    """A kernel that runs already when gdb comes to it, and what it says of its own addresses."""
    with Machine(machine_config(image, memory="256M", kaslr=True, la57=la57)) as machine:
        machine.qmp.execute("cont")
        marker = machine.config.image.shell_marker
        machine.console.wait_for(marker, BOOT_DEADLINE, alive=machine.running)
        listed, _ = machine.console.run(GREP)
        machine.stop()
        gdb.execute(f"target remote {machine.gdb_socket}")
        try:
            yield machine, addresses(listed)
        finally:
            gdb.run("disconnect")


NAMES = ("_text", "init_top_pgt", "linux_banner")
#: Three times: the serial port of a busy machine doubles a character now and then.
GREP = f"grep -E ' ({'|'.join(NAMES)})$' /proc/kallsyms > /own; cat /own /own /own"


def addresses(kallsyms: str) -> dict[str, int]:
    """Addresses by the guest's /proc/kallsyms, from the lines that came whole."""
    found = re.findall(r"^([0-9a-f]{16}) \w (\w+)$", kallsyms, re.MULTILINE)
    own = {name: int(at, 16) for at, name in found if name in NAMES}
    assert set(own) == set(NAMES), kallsyms
    return own


def check_found(gdb: Gdb, machine: Machine, own: dict[str, int]) -> None:
    """All commands have the right place, wherever gdb has its symbols."""
    status = json.loads(gdb.execute("sme status --json"))
    assert int(status["kernel"]["va"], 16) == own["_text"]
    assert int(status["kernel"]["koff"], 16) == own["_text"] - gdb.evaluate("&_text")
    # What is at the place is this kernel's, byte for byte: QEMU's own translation says so.
    banner = machine.qmp.hmp(f"gva2gpa {own['linux_banner']:#x}")
    pa = int(status["kernel"]["pa"], 16) + own["linux_banner"] - own["_text"]
    assert banner.strip() == f"gpa: {pa:#x}"
    walk = json.loads(gdb.execute(f"sme pte --json {own['init_top_pgt']:#x}"))
    assert (walk["symbol"], walk["outcome"]) == ("init_top_pgt", "mapped")
    assert "CR3 == __pa(" in gdb.execute("sme cr3")
    if own["_text"] > (linked := gdb.evaluate("&init_top_pgt")):
        # Where it was linked is not where it is: said, whatever is there now.
        walk = json.loads(gdb.execute("sme pte --json &init_top_pgt"))
        assert (int(walk["va"], 16), int(walk["moved_to"], 16)) == (linked, own["init_top_pgt"])


def check_moved(gdb: Gdb, own: dict[str, int]) -> None:
    """gdb's own symbols follow, once."""
    walk, checked = (
        gdb.execute(f"sme pte --json {own['init_top_pgt']:#x}"),
        gdb.execute("sme cr3"),
    )
    by = own["_text"] - gdb.evaluate("&_text")
    place = f"_text is at {own['_text']:#x}\n"
    said = f"symbols moved by {by:#x}: {place}" if by else f"nothing moved: {place}"
    assert gdb.execute("sme kaslr") == said
    assert gdb.evaluate("&init_top_pgt") == own["init_top_pgt"]
    assert gdb.evaluate("&__per_cpu_start") == 0
    assert gdb.execute("sme kaslr") == f"nothing moved: {place}"
    assert gdb.execute("sme pte --json &init_top_pgt") == walk
    assert gdb.execute("sme cr3") == checked
    assert "Linux version" in gdb.execute("x/s linux_banner")


@pytest.mark.parametrize(("image", "la57"), KERNELS, ids=str)
def test_every_boot_is_found(gdbs: Callable[[str], Gdb], image: str, la57: bool) -> None:
    gdb = gdbs(image)
    places = []
    for _ in range(BOOTS):
        with attached(gdb, image, la57) as (machine, own):
            check_found(gdb, machine, own)
            places.append(own["_text"])
            if len(places) == BOOTS:
                check_moved(gdb, own)
    assert len(set(places)) > 1, "KASLR chose one place every time"


@pytest.mark.parametrize("image", ["debian-6.1", "debian-6.12"])
def test_with_the_c_bit_and_without_symbols(boot: OwnSessions, image: str) -> None:
    session = boot(image, "sme", until="shell", kaslr=True)
    own = addresses(session.shell(GREP))
    session.gdb.execute("symbol-file")
    status = json.loads(session.gdb.execute("sme status --json"))
    assert int(status["kernel"]["va"], 16) == own["_text"]
    assert (status["scheme"], status["c_bit"]) == ("sme", 47)
    assert status["symbols"] == "kallsyms in the kernel's memory"
    walk = json.loads(session.gdb.execute("sme pte --json init_top_pgt"))
    assert int(walk["va"], 16) == own["init_top_pgt"]
    assert walk["encrypted"]


def test_symbols_that_were_moved_by_hand(boot: OwnSessions) -> None:
    """symbol-file -o moves per-CPU symbols too, which KASLR does not."""
    session = boot("debian-6.1", "sme", until="shell", kaslr=True)
    session.gdb.timeout = 240
    commands = ("sme cr3", "sme audit kernel-half-shared cr3", "sme pte --root init_top_pgt 0")
    before = [session.gdb.execute(command) for command in commands]
    koff = int(json.loads(session.gdb.execute("sme status --json"))["kernel"]["koff"], 16)
    vmlinux = session.machine.config.image.vmlinux
    session.gdb.execute(f"symbol-file {vmlinux} -o {koff:#x}")
    assert session.gdb.evaluate("&__per_cpu_start") == koff
    assert [session.gdb.execute(command) for command in commands] == before


def test_a_wrong_vmlinux_is_told_by_its_build_id(boot: OwnSessions) -> None:
    session = boot("debian-6.1", until="shell", kaslr=True)
    session.gdb.execute(f"symbol-file {obtain('debian-6.12').vmlinux}")
    for command in ("sme kaslr", "sme cr3"):
        failed = session.gdb.run(command)
        assert failed.error is not None
        assert re.search(r"symbols are of another kernel \(build-id [0-9a-f]{40}", failed.error)

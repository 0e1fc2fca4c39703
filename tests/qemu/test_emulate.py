# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme emulate`: stock kernels find SME or SEV, and are told why when they cannot."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.pytest_plugin import OwnSessions, SharedSessions, machine_config

#: Every image, scheme, number of levels, amount of CPUs and of memory, and the ends of the range of
#: C-bits, in as few boots as they fit.
MACHINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "6.1-sme43": ("debian-6.1", "sme", {"c_bit": 43}),
    "6.1-sme51-la57-smp4": ("debian-6.1", "sme", {"c_bit": 51, "la57": True, "smp": 4}),
    "6.12-sme47-smp2-5G": ("debian-6.12", "sme", {"smp": 2, "memory": "5G"}),
    "6.12-sev47": ("debian-6.12", "sev", {}),
    "6.1-sev51-smp2": ("debian-6.1", "sev", {"c_bit": 51, "smp": 2}),
}


def breakpoints(session: Session) -> list[str]:
    """What `maint info breakpoints` lists, gdb's own internal ones (negative numbers) as well."""
    text = session.gdb.execute("maint info breakpoints")
    lines = [line for line in text.splitlines() if re.match(r"^-?\d+ ", line)]
    # gdb keeps "shlib events", "longjmp master" and the like of its own.
    return [line for line in lines if "hw breakpoint" in line]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernel_finds_it_as_on_the_machine(machine: str, boot: OwnSessions) -> None:
    image, scheme, settings = MACHINES[machine]
    session = boot(image, scheme, until="shell", **settings)
    name = scheme.upper()
    assert f"Memory Encryption Features active: AMD {name}" in session.machine.console.text()
    session.machine.qmp.execute("query-status")
    # Short answers: on a busy machine QEMU's serial line gives a character twice now and then.
    cpus = str(settings.get("smp", 1))
    assert session.shell("grep -c ^processor /proc/cpuinfo").strip() == cpus
    # The kernel hides sme from a SEV guest's /proc/cpuinfo only when firmware has it off.
    assert session.shell(f"grep '^flags' /proc/cpuinfo | grep -cw {scheme}").strip() == cpus
    sizes = session.shell("grep -o '[0-9]* bits physical' /proc/cpuinfo | sort -u")
    assert sizes.strip() == "47 bits physical"
    found = json.loads(session.gdb.execute("sme status --json"))
    assert (found["scheme"], found["c_bit"]) == (scheme, settings.get("c_bit", 47))
    assert found["x86_phys_bits"] == 47
    assert json.loads(session.gdb.execute("sme cr3 --json"))["passed"]
    assert breakpoints(session) == []
    assert "done: every CPU is identified" in session.gdb.execute("sme emulate")


@pytest.fixture
def at_reset(boot: OwnSessions) -> Session:
    return boot("debian-6.1", "sme", until="reset")


def refused(session: Session, command: str) -> str:
    """The reason; nothing else is printed, no breakpoint set, no byte of RAM changed."""
    before = breakpoints(session)
    result = session.gdb.run(command)
    assert result.output == ""
    assert result.error is not None
    assert "\n" not in result.error.strip()
    assert breakpoints(session) == before
    return result.error.strip()


def test_refusals_at_reset(at_reset: Session) -> None:
    session = at_reset
    # The harness has armed one: there can be no second, until it is taken back.
    assert len(breakpoints(session)) > 0
    assert refused(session, "sme emulate sme") == (
        "sme emulate: an emulation is armed already; take it back: sme emulate off"
    )
    assert session.gdb.execute("sme emulate off") == "emulation off\n"
    assert breakpoints(session) == []
    assert session.gdb.execute("sme emulate").startswith("no emulation; at reset, start it with")
    assert session.gdb.execute("sme emulate off") == "emulation off\n"

    wrong = refused(session, "sme emulate sme --c-bit 51")
    assert "QEMU does not show its RAM a second time at 1 << 51" in wrong
    assert "it does at bit 47: use --c-bit 47" in wrong
    assert "give a bit from 43 to 51" in refused(session, "sme emulate sme --c-bit 40")
    assert "give 0 to 15 bits" in refused(session, "sme emulate sme --reduction 16")
    assert "invalid choice: 'tdx'" in refused(session, "sme emulate tdx")

    # A symbol file without the function, as that of a kernel built without the option.
    session.gdb.execute("file /bin/busybox")
    without = refused(session, "sme emulate sme")
    assert "no symbol sme_enable in" in without
    assert "CONFIG_AMD_MEM_ENCRYPT=y" in without
    session.gdb.execute(f"file {session.machine.config.image.vmlinux}")

    # Once more, by hand: the bit is found where QEMU shows its RAM again.
    assert "SME with C-bit 47 armed" in session.gdb.execute("sme emulate sme")
    assert len(breakpoints(session)) > 0


def test_it_can_begin_at_startup_64_but_not_past_sme_enable(at_reset: Session) -> None:
    session, gdb = at_reset, at_reset.gdb
    gdb.execute("sme emulate off")
    start = gdb.evaluate("(unsigned long)&startup_64 - 0xffffffff80000000")
    gdb.execute(f"thbreak *{start:#x}")
    gdb.execute("continue")
    assert "armed: answering sme_enable" in gdb.execute("sme emulate sme --reduction 4")
    gdb.execute("thbreak x86_64_start_kernel")
    gdb.execute("continue")
    found = json.loads(gdb.execute("sme status --json"))
    assert (found["scheme"], found["c_bit"]) == ("sme", 47)
    assert re.search(r"\((\d+) answers given\)", gdb.execute("sme emulate")) is not None
    gdb.execute("sme emulate off")
    assert breakpoints(session) == []
    reason = refused(session, "sme emulate sme")
    assert "the kernel is past sme_enable already (early boot, on early_top_pgt" in reason
    assert "reset the machine" in reason


def test_ctrl_c_in_the_middle_and_off(at_reset: Session) -> None:
    session = at_reset
    pending = session.gdb.begin("continue")
    deadline = time.monotonic() + 60
    while not session.machine.qmp.running():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    session.gdb.interrupt()
    pending.result()
    session.gdb.execute("sme emulate off")
    assert breakpoints(session) == []
    # The guest goes on, without encryption.
    session.gdb.execute("thbreak start_kernel")
    session.gdb.execute("continue")
    assert json.loads(session.gdb.execute("sme status --json"))["scheme"] == "none"


def test_a_qemu_without_the_second_view(booted: SharedSessions) -> None:
    session = booted("debian-6.1", "none", until="reset")
    reason = refused(session, "sme emulate sev")
    assert "QEMU does not show its RAM a second time at 1 << 47 (0x800000000000)" in reason
    assert "docs/emulation.md" in reason


def test_the_other_targets(tmp_path: Path) -> None:
    """A process of this machine, and gdbserver: not QEMU."""
    with Gdb(["/bin/busybox"]) as gdb:
        gdb.execute(f"source {PLUGIN}")
        assert gdb.run("sme emulate sme").error == (
            "sme emulate: no target; connect first, for example: "
            "target remote /path/of/qemu-gdb.sock"
        )
        gdb.execute("starti true")
        native = gdb.run("sme emulate sme").error
        assert native is not None
        assert native.startswith("sme emulate: the target (")
        gdb.execute("kill")


def test_nothing_is_left_in_ram_by_the_check_of_the_second_view(at_reset: Session) -> None:
    session = at_reset
    session.gdb.execute("sme emulate off")
    before = ram(session)
    session.gdb.execute("sme emulate sme")
    assert ram(session) == before
    assert machine_config("debian-6.1", "sme") == session.machine.config


def ram(session: Session) -> bytes:
    with open(f"/proc/self/fd/{session.machine.ram_fd}", "rb") as file:
        return subprocess.run(["sha256sum"], stdin=file, capture_output=True, check=True).stdout

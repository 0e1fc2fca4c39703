# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests over kgdb share."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from gdb_sme.harness.gdb import Gdb
from gdb_sme.harness.images.initramfs import Node
from gdb_sme.harness.kgdb import KgdbSession, When, enter_kgdb
from gdb_sme.harness.layout import MachineConfig
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.initrd import FILE, with_files
from tests.qemu.serial_line import SerialLine

IMAGES = ("kgdb-6.1", "kgdb-6.12")
C_BIT = 47
MASK = 1 << C_BIT
KM = 0xFFFFFFFF80000000
MODULE = "crc4"
TASK = "kgdb_info[kgdb_active.counter].task"


#: Without ACPI the kernel has to be told where QEMU's configuration device is.
_FW_CFG = {"kgdb-6.1": "qemu_fw_cfg.ioport=12@0x510:0:1:4"}


def with_module(image: str, directory: Path) -> MachineConfig:
    """A machine with SME and the module of the image; QEMU's dumps of it have VMCOREINFO."""
    config = machine_config(
        image,
        "sme",
        memory="256M",
        qemu_args=("-device", "vmcoreinfo"),
        append=_FW_CFG.get(image, ""),
    )
    module = config.image.kernel.with_name(f"{MODULE}.ko")
    return with_files(config, directory, Node(module.name, FILE, module.read_bytes()))


def shell(session: KgdbSession, command: str) -> str:
    """Run a command in the guest's shell; the guest is in kgdb again then."""
    going = session.gdb.begin("continue")
    output, status = session.machine.console.run(command)
    assert status == 0, output
    enter_kgdb(session.machine)
    going.result()
    return output


def kgdb_session(image: str, when: When = When.SHELL, **settings: Any) -> KgdbSession:
    """A guest with SME active that is in kgdb; a context manager."""
    return KgdbSession(machine_config(image, "sme", memory="256M", **settings), when)


def shown(gdb: Gdb, command: str) -> dict[str, Any]:
    """The JSON that a command shows, without the progress that it may have shown before."""
    progress, start, document = gdb.execute(f"{command} --json", timeout=400).partition('{"')
    assert progress == "" or progress.startswith(" ".join(command.split()[:2]) + ": at 0x")
    payload: dict[str, Any] = json.loads(start + document)
    return payload


def walk(gdb: Gdb, expression: str) -> dict[str, Any]:
    """A walk, without the words that say where the root was learned."""
    payload = shown(gdb, f"sme pte {expression}")
    root = payload["root"]
    payload["root"] = {name: root[name] for name in ("pa", "raw", "c_bit")}
    return payload


def error_of(gdb: Gdb, command: str) -> str:
    """The error of a command that fails: one line, and nothing a person cannot read."""
    result = gdb.run(command)
    assert result.error is not None, result.output
    assert "\n" not in result.error.strip()
    assert "Traceback" not in result.output + result.error
    return result.error


def over(session: KgdbSession, line: SerialLine) -> None:
    """Put gdb onto another line to the same kernel, which waits meanwhile."""
    session.gdb.run("disconnect")
    session.gdb.execute("set remotetimeout 3")
    session.gdb.execute(f"target remote {line.path}")


def without_debug_information(vmlinux: Path, directory: Path) -> Path:
    """A copy of ``vmlinux`` with its symbol table alone."""
    stripped = directory / "vmlinux.stripped"
    subprocess.run(["objcopy", "--strip-debug", vmlinux, stripped], check=True)
    return stripped

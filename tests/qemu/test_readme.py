# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's way by hand, word for word: its QEMU command, its gdb commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from gdb_sme.harness.gdb import Gdb
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.conftest import DEADLINE, Runner

ROOT = Path(__file__).parents[2]


def blocks() -> list[str]:
    """The indented blocks of the section."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## By hand, in any gdb\n")[2].partition("\n## ")[0]
    return [block.replace("\n    ", "\n") for block in re.findall(r"(?:^ {4}.*\n)+", section, re.M)]


def gdb_commands(block: str) -> list[str]:
    return re.findall(r"^ *\(gdb\) (.*)$", block, re.M)


def test_by_hand(runner: Runner) -> None:
    attach, boot, go = blocks()
    image = machine_config("debian-6.1", "sme").image
    there = runner.temporary
    for name, file in {"vmlinuz": image.kernel, "initrd.img": image.initrd}.items():
        assert file is not None
        (there / name).symlink_to(file)
    truncate, qemu_command = re.findall(r"^ *\$ ((?:.*\\\n)*.*)$", boot, re.M)
    subprocess.run(truncate, shell=True, check=True, cwd=there)
    with subprocess.Popen(
        ["sh", "-c", f"exec {qemu_command}"],
        cwd=there,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=runner.environment,
    ) as qemu:
        try:
            while not (there / "qemu-gdb.sock").exists():
                assert qemu.poll() is None
            with Gdb([str(image.vmlinux)]) as gdb:
                gdb.execute(f"cd {ROOT}")
                source, target, status = gdb_commands(attach)
                gdb.execute(source)
                gdb.execute(target.replace("qemu-gdb.sock", str(there / "qemu-gdb.sock")))
                assert "reset" in gdb.execute(status)
                for command in gdb_commands(go):
                    said = gdb.execute(command, DEADLINE)
                assert "start_kernel" in said
                gdb.execute("sme cr3 --expect early")
                assert gdb.evaluate("$cr3") >> 47 == 1
                gdb.execute("kill")
        finally:
            qemu.kill()
    for name in ("vmlinuz", "initrd.img", "guest.ram"):
        (there / name).unlink()
    assert runner.left_behind() == []

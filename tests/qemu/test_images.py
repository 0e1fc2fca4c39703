# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels and the initramfs under QEMU, which is started here by hand."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gdb_sme.harness.images import Image, bzimage_build_id, elf_build_id, obtain

DEADLINE_SECONDS = 60


@dataclass
class Guest:
    """A guest whose serial console is QEMU's standard streams."""

    image: Image
    qemu: subprocess.Popen[bytes]
    console: str = ""

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for ``pattern`` on the console; what comes up to its end is taken off."""
        assert self.qemu.stdout is not None
        deadline = time.monotonic() + DEADLINE_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.qemu.stdout, selectors.EVENT_READ)
            while not (match := re.search(pattern, self.console, re.MULTILINE)):
                assert "Kernel panic" not in self.console, self.console
                assert selector.select(deadline - time.monotonic()), self.console
                block = os.read(self.qemu.stdout.fileno(), 65536)
                assert block, f"QEMU has ended: {self.console}"
                self.console += block.decode(errors="replace").replace("\r", "")
        self.console = self.console[match.end() :]
        return match

    def type(self, line: str) -> None:
        assert self.qemu.stdin is not None
        self.qemu.stdin.write(line.encode() + b"\n")
        self.qemu.stdin.flush()

    def run(self, command: str) -> str:
        """The output of a command of the shell. The quotes keep its echo from looking like it."""
        self.type(f"echo be''gin; {command}; echo e''nd")
        return self.expect(r"^begin\n((?:.|\n)*?)end\n")[1]


@pytest.fixture(params=["debian-6.1", "debian-6.12"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    image = obtain(request.param)
    assert image.initrd is not None
    command = (
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "EPYC", "-m", "512M", "-no-reboot",
        "-nodefaults", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
    )  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        try:
            yield Guest(image, qemu)
        finally:
            if qemu.poll() is None:
                qemu.kill()


def test_shell_and_power_off(guest: Guest) -> None:
    guest.expect(rf"^{guest.image.shell_marker}\n")
    guest.expect("^# ")

    # The kernel that runs tells its own build-id: that of both files.
    notes = guest.run("hexdump -v -e '1/1 \"%02x\"' /sys/kernel/notes")
    build_id = guest.image.build_id
    assert build_id is not None
    assert f"040000001400000003000000474e5500{build_id}" in notes.replace("\n", "")

    assert guest.run("cat /proc/1/comm") == "init\n"
    assert guest.run("echo $$") != "1\n"  # so that it may end
    mounts = guest.run("cat /proc/mounts")
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        assert re.search(rf" {place} {kind} ", mounts)
    assert re.search(" /sys/kernel/debug debugfs ", mounts)

    guest.type("exit")  # gives the next shell, without a second marker
    guest.expect("^BusyBox v")
    assert guest.run("tty") == "/dev/ttyS0\n"

    guest.type("poweroff")
    assert guest.qemu.wait(DEADLINE_SECONDS) == 0
    assert guest.qemu.stdout is not None
    assert guest.image.shell_marker not in guest.console + guest.qemu.stdout.read().decode()


@pytest.mark.parametrize("name", ["debian-6.1", "debian-6.12"])
def test_build_id(name: str) -> None:
    image = obtain(name)
    assert image.vmlinux is not None
    command = ("readelf", "--notes", str(image.vmlinux))
    notes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"Build ID: ([0-9a-f]{40})$", notes, re.MULTILINE)
    assert match is not None
    assert image.build_id == match[1]
    assert elf_build_id(image.vmlinux) == bzimage_build_id(image.kernel) == match[1]

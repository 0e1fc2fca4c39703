# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kdump: a guest that panics into its crash kernel, and the vmcore that it shows there.

The crash kernel runs in memory of its own, and /proc/vmcore is a header that it has made and the
rest of RAM. So the header is copied out of the guest, through its console, and what it says the
segments hold is taken from the guest's RAM; checksums that the guest makes of /proc/vmcore tell
that this is the same.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gdb_sme.core.elf import CoreFile, parse_core
from gdb_sme.harness.boot import Session
from gdb_sme.harness.images.initramfs import Node
from gdb_sme.harness.layout import MachineConfig
from tests.qemu.initrd import DIRECTORY, FILE, PROGRAM, with_files

_SOURCE = Path(__file__).with_name("kexec_crash.c")
_DEADLINE = 240.0

#: One CPU is enough for a copy; the second view of RAM, which the firmware describes as memory that
#: could be plugged in, would cost the small crash kernel a bounce buffer that it has no room for.
_CRASH_COMMAND_LINE = "console=ttyS0 nokaslr no_timer_check maxcpus=1 acpi_no_memhotplug numa=off"


def with_crash_kernel(config: MachineConfig, directory: Path) -> MachineConfig:
    """The machine with what it needs to load a crash kernel, its own, in its initramfs."""
    load = directory / "kexec_crash"
    subprocess.run(["gcc", "-static", "-Os", "-o", load, _SOURCE], check=True)
    assert config.image.initrd is not None
    made = with_files(
        config,
        directory,
        Node("crash", DIRECTORY),
        Node("crash/kernel", FILE, config.image.kernel.read_bytes()),
        Node("crash/initrd", FILE, config.image.initrd.read_bytes()),
        Node("crash/load", PROGRAM, load.read_bytes()),
    )
    return replace(made, append=f"{config.append} crashkernel=128M")


def panic(session: Session) -> None:
    """Load the crash kernel, crash, and stop in the crash kernel's shell."""
    marker = session.machine.config.image.shell_marker
    session.shell(f"/crash/load /crash/kernel /crash/initrd '{_CRASH_COMMAND_LINE}'")
    console = session.machine.console
    start = console.size()
    deadline = time.monotonic() + _DEADLINE
    with session.resumed():
        console.send("echo c > /proc/sysrq-trigger")
        while marker not in console.text(start):
            assert time.monotonic() < deadline, console.text(start)[-2000:]
            time.sleep(0.1)


def copied_out(session: Session, path: str) -> bytes:
    """A gzip file in the guest.

    The serial port of a busy machine doubles a character now and then: of several copies of a line
    the one that has the length of a line counts.
    """
    session.shell(f"base64 {path} > /copy")
    copies = zip(*(session.shell("cat /copy").split() for _ in range(5)), strict=True)
    return gzip.decompress(base64.b64decode("".join(min(lines, key=len) for lines in copies)))


def write_vmcore(session: Session, path: Path) -> CoreFile:
    """Write what /proc/vmcore is in the crash kernel; see the module. Returns what is in it."""
    session.shell("head -c 65536 /proc/vmcore | gzip > /head")
    head = copied_out(session, "/head")
    core = parse_core(lambda offset, length: head[offset : offset + length], None)
    ram = session.machine.layout.parts
    with path.open("wb") as file:
        file.write(head[: min(segment.offset for segment in core.segments)])
        for segment in core.segments:
            (part,) = (p for p in ram if p.pa <= segment.pa < p.pa + p.size)
            assert segment.pa + segment.size <= part.pa + part.size
            for at in range(0, segment.size, 1 << 20):
                data = os.pread(
                    session.machine.ram_fd,
                    min(1 << 20, segment.size - at),
                    part.offset + segment.pa - part.pa + at,
                )
                if data.count(0) < len(data):  # where there are zeros only, leave a hole
                    os.pwrite(file.fileno(), data, segment.offset + at)
        file.truncate(max(segment.offset + segment.size for segment in core.segments))
    return core


def check_vmcore(session: Session, path: Path, core: CoreFile) -> None:
    """That the file is what the guest has, by checksums of pieces of every segment."""
    for segment in core.segments:
        for at in {segment.offset, segment.offset + segment.size // 2 & ~0xFFF}:
            count = min(64, (segment.offset + segment.size - at) // 4096)
            if not count:
                continue
            command = f"dd if=/proc/vmcore bs=4096 skip={at // 4096} count={count} 2>/dev/null"
            with path.open("rb") as file:
                file.seek(at // 4096 * 4096)
                expected = hashlib.md5(file.read(4096 * count)).hexdigest()
            assert expected in session.shell(f"{command} | md5sum")


@contextmanager
def crashed(config: MachineConfig, directory: Path) -> Iterator[Session]:
    """The machine at its shell, ready to `panic`."""
    with Session(with_crash_kernel(config, directory), "shell") as session:
        yield session

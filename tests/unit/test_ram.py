# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM read from another process's memory: a child of the test plays QEMU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gdb_sme.errors import ReadError, TargetError
from gdb_sme.target.peer import peer_processes
from gdb_sme.target.ram import FileMapping, RamFile, open_ram, parse_maps
from tests.fakes import FakePhys

MIB = 1 << 20
#: Maps a memfd shared and one privately, fills both, listens on two sockets, and tells where.
CHILD = """
import ctypes, mmap, os, socket, sys
flags = {"shared": mmap.MAP_SHARED, "private": mmap.MAP_PRIVATE}[sys.argv[2]]
fd = os.memfd_create("guest-ram")
os.ftruncate(fd, 4 << 20)
ram = mmap.mmap(fd, 4 << 20, flags=flags)
for page in range(1024):
    ram[page * 4096 : page * 4096 + 8] = (page | 1 << 40).to_bytes(8, "little")
unix = socket.socket(socket.AF_UNIX); unix.bind(sys.argv[1]); unix.listen()
tcp = socket.socket(); tcp.bind(("127.0.0.1", 0)); tcp.listen()
address = ctypes.addressof(ctypes.c_char.from_buffer(ram))
print(address, tcp.getsockname()[1], flush=True)
taken = tcp.accept()
sys.stdin.read()
"""


@dataclass(frozen=True)
class Child:
    pid: int
    address: int
    port: int
    path: str

    def monitor(self, command: str) -> str:
        """QEMU's gpa2hva: RAM at 0 and at 1 TiB is the file's first and second half."""
        name, pa = command.split()
        assert name == "gpa2hva"
        at = int(pa, 16)
        offset = at - (1 << 40) + 2 * MIB if at >> 40 else at
        return f"Host virtual address for {pa} (ram) is {self.address + offset:#x}\r\n"


def start(path: str, how: str) -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, path, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address, port = process.stdout.readline().split()
        yield Child(process.pid, int(address), int(port), path)
        process.kill()


@pytest.fixture
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    yield from start(str(tmp_path_factory.mktemp("s") / "sock"), "shared")


@pytest.fixture
def private_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    yield from start(str(tmp_path_factory.mktemp("s") / "sock"), "private")


def content(page: int) -> bytes:
    return (page | 1 << 40).to_bytes(8, "little") + bytes(4088)


def stub(changed: int | None = None) -> FakePhys:
    """What the stub says: RAM at 0 and 1 TiB, and ROM that no file holds."""
    parts = [b"".join(map(content, range(first, first + 512))) for first in (0, 512)]
    if changed is not None:
        part = bytearray(parts[1])
        part[changed] ^= 1
        parts[1] = bytes(part)
    return FakePhys({0: parts[0], 1 << 40: parts[1]})


def test_ram_is_read_from_the_other_process(child: Child) -> None:
    fake = stub()
    found = open_ram(fake, iter([os.getpid(), child.pid]), child.monitor)
    assert isinstance(found, RamFile)
    assert str(child.pid) in found.name
    assert "guest-ram" in found.name
    assert found.ram == fake.ram
    fake.reads.clear()
    with found.batch():
        assert found.read(0x1000, 4096) == content(1)
        assert found.read((1 << 40) + 0x3000, 8) == content(515)[:8]
        assert found.read(0x1004, 8) == content(1)[4:12]
    assert fake.reads == []
    # What the chipset can turn to ROM comes from the stub, as does what is not RAM at all.
    assert found.read(0xF0000, 4096) == content(0xF0)
    assert fake.reads == [(0xF0000, 4096)]
    with pytest.raises(ReadError, match="outside guest RAM"):
        found.read(1 << 30, 8)
    with pytest.raises(ReadError):
        found.read((2 << 20) - 8, 16)


def test_a_file_that_is_not_what_the_stub_says_is_not_used(child: Child) -> None:
    found = open_ram(stub(changed=4), iter([child.pid]), child.monitor)
    assert found is not None
    # The half that differs is left to the stub; the other one is mapped.
    assert found.read(1 << 40, 8) != content(512)[:8]
    assert found.read(0x1000, 8) == content(1)[:8]
    assert "checked" in found.name


def test_firmware_next_to_ram_above_4_gib_does_not_hide_it(child: Child) -> None:
    # QEMU's monitor shows ROM that ends at 4 GiB and RAM that begins there as one range.
    ram = b"".join(map(content, range(512)))
    fake = FakePhys({(1 << 32) - 4096: b"ROM".ljust(4096) + ram})

    def monitor(command: str) -> str:
        offset = int(command.split()[1], 16) - (1 << 32)
        return f"Host virtual address for it is {child.address + offset if offset >= 0 else 1:#x}"

    found = open_ram(fake, iter([child.pid]), monitor)
    assert found is not None
    fake.reads.clear()
    assert found.read((1 << 32) + 0x5000, 4096) == content(5)
    assert fake.reads == []
    assert found.read((1 << 32) - 4096, 3) == b"ROM"


def test_two_files_side_by_side_are_both_found(child: Child) -> None:
    # In one range of RAM, the second half of the child's file comes before the first.
    halves = [b"".join(map(content, range(first, first + 512))) for first in (512, 0)]
    fake = FakePhys({1 << 33: b"".join(halves)})

    def monitor(command: str) -> str:
        offset = int(command.split()[1], 16) - (1 << 33)
        return f"Host virtual address for it is {child.address + (offset + 2 * MIB) % (4 * MIB):#x}"

    found = open_ram(fake, iter([child.pid]), monitor)
    assert found is not None
    fake.reads.clear()
    assert found.read(1 << 33, 4096) == content(512)
    assert found.read((1 << 33) + 2 * MIB, 4096) == content(0)
    assert fake.reads == []


def test_a_private_mapping_is_not_used(private_child: Child) -> None:
    assert open_ram(stub(), iter([private_child.pid]), private_child.monitor) is None


def test_without_a_way_there_is_no_reader(child: Child) -> None:
    def no_monitor(command: str) -> str:
        raise TargetError("no monitor")

    assert open_ram(stub(), iter([child.pid]), no_monitor) is None
    assert open_ram(stub(), iter([child.pid]), lambda _: "unknown command: 'gpa2hva'") is None
    assert open_ram(stub(), iter([]), child.monitor) is None
    assert open_ram(stub(), iter([1 << 22]), child.monitor) is None


def test_the_process_at_the_other_end_is_found(child: Child) -> None:
    assert child.pid not in set(peer_processes())
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect(child.path)
        assert child.pid in set(peer_processes())
    assert child.pid not in set(peer_processes())
    with socket.create_connection(("127.0.0.1", child.port)):
        deadline = time.monotonic() + 30
        while child.pid not in set(peer_processes()):
            assert time.monotonic() < deadline, "the connection's other end is not found"


def test_maps_are_read() -> None:
    text = (
        "7f0000000000-7f0020000000 rw-s 00100000 00:01 1234 /memfd:guest-ram (deleted)\n"
        "7f0020000000-7f0040000000 rw-p 00000000 00:01 1234 /memfd:guest-ram (deleted)\n"
        "7f0050000000-7f0060000000 rw-p 00000000 00:00 0\n"
        "7f0060000000-7f0060001000 r--s 00000000 fd:02 99                 /dev/shm/a file\n"
    )
    assert parse_maps(text) == (
        FileMapping(
            0x7F0000000000, 0x7F0020000000, 0x100000, (0, 1, 1234), "/memfd:guest-ram (deleted)"
        ),
        FileMapping(0x7F0060000000, 0x7F0060001000, 0, (0xFD, 2, 99), "/dev/shm/a file"),
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where guest RAM is put, and QEMU's command line; tests/qemu/test_layout.py asks QEMU itself."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from gdb_sme.errors import UsageError
from gdb_sme.harness.images import Image
from gdb_sme.harness.layout import (
    C_BIT_MAX,
    C_BIT_MIN,
    GIB,
    MIB,
    TIB,
    Encryption,
    MachineConfig,
    RamPart,
    format_size,
    hand_command_line,
    kernel_command_line,
    machine_arguments,
    memory_layout,
    parse_size,
    qemu_command,
)

IMAGE = Image(
    name="test",
    kernel=Path("/k/bzImage"),
    vmlinux=Path("/k/vmlinux"),
    initrd=Path("/k/initrd"),
    append="console=ttyS0 nokaslr quiet",
    build_id=None,
    shell_marker="ready",
    description="",
)
C_BITS = range(C_BIT_MIN, C_BIT_MAX + 1)
SIZES = (64 * MIB, 512 * MIB, 3 * GIB - MIB, 3 * GIB, 3 * GIB + MIB, 4 * GIB, 16 * GIB)


def config(**settings: object) -> MachineConfig:
    return MachineConfig(image=IMAGE, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("512", 512 * MIB),
        ("4G", 4 * GIB),
        ("4GiB", 4 * GIB),
        ("4gb", 4 * GIB),
        ("1024K", MIB),
        (" 1T ", TIB),
    ],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "4X", "-1G", "1.5G", "0x10M", "4 0G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number with K, M, G or T"):
        parse_size(text)


@pytest.mark.parametrize("size", [*SIZES, 1024])
def test_sizes_come_back_from_their_text(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"c_bit": 42}, "C-bit 42 is not one of 43 to 51"),
        ({"c_bit": 52}, "C-bit 52 is not one of 43 to 51"),
        ({"smp": 0}, "0 CPUs: 1 to 4"),
        ({"smp": 5}, "5 CPUs: 1 to 4"),
        ({"memory": 32 * MIB}, "memory of 32M: whole MiB from 64M to 16G"),
        ({"memory": 17 * GIB}, "memory of 17G"),
        ({"memory": GIB + 4096}, "memory of 1048580K"),
    ],
)
def test_machines_that_cannot_be_had_are_refused(settings: dict[str, int], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        config(**settings)


def test_ram_without_encryption_has_one_view() -> None:
    layout = memory_layout(config(memory=4 * GIB))
    assert layout.parts == (RamPart(0, 3 * GIB, 0), RamPart(4 * GIB, GIB, 3 * GIB))
    assert (layout.enc_mask, layout.dimms, layout.maxmem) == (0, (), 0)


def test_ram_above_3_gib_lies_at_1_tib_once_there_is_a_second_view() -> None:
    layout = memory_layout(config(memory=4 * GIB, encryption=Encryption.SME))
    assert layout.parts == (RamPart(0, 3 * GIB, 0), RamPart(TIB, GIB, 3 * GIB))


@pytest.mark.parametrize("c_bit", C_BITS)
@pytest.mark.parametrize("memory", SIZES)
def test_every_byte_of_ram_is_seen_again_at_the_c_bit(c_bit: int, memory: int) -> None:
    layout = memory_layout(config(memory=memory, c_bit=c_bit, encryption=Encryption.SEV))
    assert sum(part.size for part in layout.parts) == memory
    for part, dimm in zip(layout.parts, layout.dimms, strict=True):
        for pa in (part.pa, part.pa + part.size // 2, part.pa + part.size - 1):
            assert (pa | 1 << c_bit) - dimm.pa == pa - part.pa + part.offset
            assert dimm.pa <= pa | 1 << c_bit < dimm.pa + dimm.size
    taken = sorted(
        [(part.pa, part.pa + part.size) for part in layout.parts]
        + [(dimm.pa, dimm.pa + dimm.size) for dimm in layout.dimms]
    )
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    assert taken[-1][1] <= layout.maxmem
    assert layout.maxmem < 1 << 52


def test_kernel_command_line_of_each_scheme() -> None:
    base = "earlyprintk=serial,ttyS0,115200 no_timer_check"
    own = "console=ttyS0 nokaslr quiet"
    assert kernel_command_line(config()) == f"{base} {own}"
    sev = kernel_command_line(config(encryption=Encryption.SEV, append="root=/dev/x  a"))
    assert sev == f"{base} acpi_no_memhotplug {own} root=/dev/x a"
    sme = kernel_command_line(config(encryption=Encryption.SME, kaslr=True))
    assert sme == f"{base} mem_encrypt=on acpi_no_memhotplug console=ttyS0 quiet"


def option(arguments: list[str], name: str) -> list[str]:
    return [value for key, value in pairwise(arguments) if key == name]


def test_machine_arguments_without_encryption() -> None:
    args = machine_arguments(config(smp=2), "/proc/self/fd/7")
    assert option(args, "-m") == ["512M"]
    assert option(args, "-cpu") == ["EPYC,phys-bits=52"]
    assert option(args, "-smp") == ["2"]
    assert option(args, "-object") == [
        "memory-backend-file,id=ram,mem-path=/proc/self/fd/7,size=512M,share=on"
    ]
    assert option(args, "-device") == []
    assert option(args, "-initrd") == ["/k/initrd"]


def test_machine_arguments_with_a_second_view_in_two_parts() -> None:
    args = machine_arguments(
        config(memory=5 * GIB, encryption=Encryption.SME, c_bit=51, la57=True), "ram"
    )
    assert option(args, "-cpu") == ["EPYC,phys-bits=52,+la57"]
    assert [spec.split(",")[1:4] for spec in option(args, "-object")] == [
        ["id=ram", "mem-path=ram", "size=5G"],
        ["id=enc0", "mem-path=ram", "size=3G"],
        ["id=enc1", "mem-path=ram", "size=5G"],
    ]
    assert option(args, "-device") == [
        "pc-dimm,id=dimm0,memdev=enc0,addr=0x8000000000000",
        f"pc-dimm,id=dimm1,memdev=enc1,addr={(1 << 51) + TIB - 3 * GIB:#x}",
    ]
    (memory,) = option(args, "-m")
    assert memory.startswith("5G,slots=2,maxmem=")


def test_no_port_is_ever_opened() -> None:
    command = qemu_command(config(encryption=Encryption.SME), "ram", Path("/run/dir,1"))
    sockets = [spec for spec in option(command, "-chardev") if spec.startswith("socket")]
    assert len(sockets) == 3
    assert all("path=/run/dir,,1/" in spec and "port=" not in spec for spec in sockets)
    assert "-nodefaults" in command
    assert not {"-s", "-netdev", "-nic", "-vnc"} & set(command)


def test_extra_arguments_come_last() -> None:
    args = machine_arguments(config(qemu_args=("-d", "int")), "ram")
    assert args[-2:] == ["-d", "int"]


def test_firmware_loads_the_kernel() -> None:
    args = machine_arguments(config(firmware=Path("/f/OVMF.fd")), "ram")
    assert option(args, "-bios") == ["/f/OVMF.fd"]
    assert option(args, "-kernel") == ["/k/bzImage"]
    assert not option(machine_arguments(config(), "ram"), "-bios")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kaslr": True}, "firmware with KASLR"),
        ({"encryption": Encryption.SME}, "firmware with C-bit 47: .* 43 to 46 can be had"),
    ],
)
def test_what_firmware_cannot_do(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        config(firmware=Path("f"), **settings)
    config(firmware=Path("f"), encryption=Encryption.SME, c_bit=46)


def test_the_command_line_for_a_person_is_one_shell_command() -> None:
    text = hand_command_line(
        config(encryption=Encryption.SME, append="a b"), "ram file", "gdb.sock"
    )
    words = shlex.split(text)
    assert words[0] == "qemu-system-x86_64"
    assert option(words, "-append") == [
        kernel_command_line(config(encryption=Encryption.SME, append="a b"))
    ]
    assert any("mem-path=ram file" in word for word in words)
    assert "-S" in words

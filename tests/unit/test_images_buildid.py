# SPDX-License-Identifier: GPL-2.0-or-later
"""Build-ids of ELF files and bzImages, with gcc's linker and readelf as the judges."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import (
    bzimage_build_id,
    elf_build_id,
    kernel_build_id,
    obtain_user_kernel,
)

BUILD_ID = "00112233445566778899aabbccddeeff01234567"


def compile_elf(path: Path, *options: str) -> Path:
    """A small ELF file with a note of another owner beside that of the linker."""
    source = path.with_suffix(".S")
    source.write_text(
        '.section .note.first,"a",@note\n.balign 4\n'
        '.long 4, 1, 3\n.asciz "Xen"\n.byte 1, 0, 0, 0\n'
        ".text\n.globl _start\n_start: ret\n"
    )
    command = ("gcc", "-nostdlib", "-static", "-no-pie", *options, str(source), "-o", str(path))
    subprocess.run(command, check=True, capture_output=True)
    return path


def bzimage(path: Path, payload: bytes, *, setup_sectors: int = 3, protocol: int = 0x20F) -> Path:
    """A bzImage as far as its header goes, with ``payload`` 0x2c8 bytes into its kernel."""
    image = bytearray((setup_sectors or 4) * 512 + 512 + 0x2C8)
    image[0x1F1] = setup_sectors
    image[0x202:0x208] = b"HdrS" + struct.pack("<H", protocol)
    image[0x248:0x250] = struct.pack("<II", 0x2C8, len(payload))
    path.write_bytes(bytes(image) + payload + bytes(100))
    return path


def readelf(path: Path) -> str | None:
    command = ("readelf", "--notes", str(path))
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"Build ID: ([0-9a-f]+)", text)
    return match[1] if match else None


def compressor(*command: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout

    return run


def with_size(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """What the kernel's build appends, but for gzip, which has it in its own format."""
    return lambda data: compress(data) + struct.pack("<I", len(data))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": with_size(bz2.compress),
    "lzma": with_size(lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "xz": with_size(compressor("xz", "--check=crc32", "--x86", "--lzma2=dict=1MiB", "-c")),
    "lz4": with_size(compressor("lz4", "-l", "-9", "-c")),
    "zstd": with_size(compressor("zstd", "-22", "--ultra", "-c")),
}


@pytest.mark.parametrize("algorithm", ["sha1", "md5", "uuid", "0x" + BUILD_ID])
def test_elf(tmp_path: Path, algorithm: str) -> None:
    path = compile_elf(tmp_path / "vmlinux", f"-Wl,--build-id={algorithm}")
    assert elf_build_id(path) is not None
    assert elf_build_id(path) == readelf(path) == kernel_build_id(path)


def test_elf_without(tmp_path: Path) -> None:
    path = compile_elf(tmp_path / "vmlinux", "-Wl,--build-id=none")
    assert elf_build_id(path) is None
    assert readelf(path) is None


def test_behind_another_note(tmp_path: Path) -> None:
    """As in vmlinux, whose linker script gathers all notes in one section."""
    script = tmp_path / "vmlinux.lds"
    script.write_text(
        "PHDRS { text PT_LOAD; note PT_NOTE; }\n"
        "SECTIONS { .notes : { *(.note.first) *(.note.*) } :text :note  .text : {} :text }\n"
    )
    options = (f"-Wl,--build-id=0x{BUILD_ID}", f"-Wl,-T,{script}")
    path = compile_elf(tmp_path / "vmlinux", *options)
    assert path.read_bytes().index(b"Xen\0") < path.read_bytes().index(b"GNU\0")
    assert elf_build_id(path) == readelf(path) == BUILD_ID


def test_relocatable_elf_has_sections_alone(tmp_path: Path) -> None:
    path = compile_elf(tmp_path / "x.o", "-r", f"-Wl,--build-id=0x{BUILD_ID}")
    assert elf_build_id(path) == readelf(path) == BUILD_ID


def test_stripping_leaves_it(tmp_path: Path) -> None:
    path = compile_elf(tmp_path / "vmlinux", "-g", "-Wl,--build-id=sha1")
    before = elf_build_id(path)
    subprocess.run(("strip", str(path)), check=True)
    assert elf_build_id(path) == before


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("setup_sectors", [0, 3, 27])
def test_bzimage(tmp_path: Path, compression: str, setup_sectors: int) -> None:
    elf = compile_elf(tmp_path / "vmlinux", f"-Wl,--build-id=0x{BUILD_ID}")
    payload = COMPRESSIONS[compression](elf.read_bytes())
    path = bzimage(tmp_path / "bzImage", payload, setup_sectors=setup_sectors)
    assert bzimage_build_id(path) == kernel_build_id(path) == BUILD_ID


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "it is neither an ELF file nor a bzImage"),
        (b"MZ" * 1000, "it is neither an ELF file nor a bzImage"),
        (b"\x7fELF", "it ends at 0x4, before 0x40"),
        (b"\x7fELF\x01\x01" + bytes(100), "it is not a little-endian 64-bit ELF file"),
        (
            b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 1 << 63) + bytes(14)
            + struct.pack("<HHHH", 56, 1, 0, 0),
            "it ends at 0x3e, before 0x40",
        ),
        (
            b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 1 << 63) + bytes(14)
            + struct.pack("<HHHH", 56, 1, 0, 0) + b"..",
            "it ends at 0x40, before 0x8000000000000038",
        ),
    ],
)  # fmt: skip
def test_no_kernel(tmp_path: Path, contents: bytes, message: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(contents)
    with pytest.raises(ImageError) as caught:
        kernel_build_id(path)
    assert str(caught.value) == f"cannot read the build-id of {path}: {message}"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"?" * 100, "its compression is not known, the payload begins with 3f3f3f3f3f3f3f3f"),
        (b"\x1f\x8b" + b"?" * 100, "unknown compression method"),
        (b"\xfd7zXZ\x00" + b"?" * 100, "Corrupt input data"),
        (b"\x5d\x00\x00" + b"?" * 100, "Corrupt input data"),
        (b"BZh" + b"?" * 100, "Invalid data stream"),
        (b"\x28\xb5\x2f\xfd" + b"?" * 100, "zstd cannot unpack it: .+"),
        (b"\x02\x21\x4c\x18" + b"?" * 100, "lz4 cannot unpack it: .+"),
        (gzip.compress(b"no kernel" * 20), "it is not an ELF file"),
    ],
)
def test_damaged_bzimage(tmp_path: Path, payload: bytes, message: str) -> None:
    path = bzimage(tmp_path / "bzImage", payload)
    with pytest.raises(ImageError, match=f"cannot read the build-id of {path}: .*{message}"):
        kernel_build_id(path)


def test_truncated_bzimage(tmp_path: Path) -> None:
    path = bzimage(tmp_path / "bzImage", gzip.compress(b"x" * 100))
    path.write_bytes(path.read_bytes()[:-110])
    with pytest.raises(ImageError, match="it ends before its payload does"):
        kernel_build_id(path)


def test_old_boot_protocol(tmp_path: Path) -> None:
    path = bzimage(tmp_path / "bzImage", b"", protocol=0x207)
    with pytest.raises(ImageError, match=r"boot protocol 0x0207 is older than 2\.08"):
        kernel_build_id(path)


def test_missing_decompressor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bzimage(tmp_path / "bzImage", COMPRESSIONS["zstd"](b"x"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="the program zstd is needed to unpack it"):
        kernel_build_id(path)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*none: No such file"):
        kernel_build_id(tmp_path / "none")


@pytest.fixture
def own_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A user's bzImage and its vmlinux."""
    monkeypatch.setenv("GDB_SME_CACHE", str(tmp_path / "cache"))
    vmlinux = compile_elf(tmp_path / "vmlinux", f"-Wl,--build-id=0x{BUILD_ID}")
    return bzimage(tmp_path / "bzImage", gzip.compress(vmlinux.read_bytes())), vmlinux


def test_user_kernel(own_kernel: tuple[Path, Path]) -> None:
    kernel, vmlinux = own_kernel
    image = obtain_user_kernel(kernel, vmlinux, None, "quiet debug")
    assert (image.kernel, image.vmlinux, image.build_id) == (kernel, vmlinux, BUILD_ID)
    assert image.append == "console=ttyS0 nokaslr quiet debug"
    assert image.initrd is not None
    assert image.initrd.is_file()


def test_user_kernel_with_its_own_initrd(own_kernel: tuple[Path, Path], tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with pytest.raises(ImageError, match=r"cannot read .*initrd: no such file"):
        obtain_user_kernel(*own_kernel, initrd)
    initrd.touch()
    assert obtain_user_kernel(*own_kernel, initrd).initrd == initrd


def test_user_kernel_with_a_root_device(own_kernel: tuple[Path, Path]) -> None:
    assert obtain_user_kernel(*own_kernel, None, "root=/dev/vda1").initrd is None


def test_user_kernel_that_is_its_own_vmlinux(own_kernel: tuple[Path, Path]) -> None:
    kernel, vmlinux = own_kernel
    assert obtain_user_kernel(vmlinux, None, None).vmlinux == vmlinux
    assert obtain_user_kernel(kernel, None, None).vmlinux is None


def test_user_kernel_with_the_vmlinux_of_another(
    own_kernel: tuple[Path, Path], tmp_path: Path
) -> None:
    kernel, _ = own_kernel
    other = compile_elf(tmp_path / "other", "-Wl,--build-id=0xfeed")
    with pytest.raises(ImageError) as caught:
        obtain_user_kernel(kernel, other, None)
    assert str(caught.value) == (
        f"{other} (build-id feed) is not of the same build as {kernel} (build-id {BUILD_ID}); "
        "take the vmlinux that was built with it"
    )

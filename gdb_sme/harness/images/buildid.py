# SPDX-License-Identifier: GPL-2.0-or-later
"""The build-id of a kernel, from its ELF file or from inside a bzImage.

The linker computes it over the whole of vmlinux and keeps it in an ELF note, which stripping and
compressing leave alone: a bzImage and a vmlinux of one build have the same, others never do.
"""

from __future__ import annotations

import bz2
import io
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gdb_sme.errors import ImageError

ELF_MAGIC = b"\x7fELF"
PT_NOTE = 4
SHT_NOTE = 7
NT_GNU_BUILD_ID = 3

# Offsets in the header of a bzImage: Documentation/arch/x86/boot.rst.
SETUP_SECTS = 0x1F1
HEADER_MAGIC = 0x202
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C
FIRST_PROTOCOL_WITH_PAYLOAD = 0x0208


def _program(*command: str) -> Callable[[bytes], bytes]:
    """A decompressor that runs ``command``, which reads and writes its standard streams."""

    def decompress(data: bytes) -> bytes:
        if shutil.which(command[0]) is None:
            raise ImageError(f"the program {command[0]} is needed to unpack it; install it")
        # The kernel's build appends the unpacked size, four bytes (size_append in
        # scripts/Makefile.lib), which these programs would take for the start of another frame.
        done = subprocess.run(command, input=data[:-4], capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
            raise ImageError(f"{command[0]} cannot unpack it: {reason}")
        return done.stdout

    return decompress


# CONFIG_KERNEL_GZIP and its siblings, by the first bytes of the payload.
DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
    (b"\xfd7zXZ\x00", lambda data: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)),
    (b"\x5d\x00\x00", lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    (b"\x28\xb5\x2f\xfd", _program("zstd", "-dc")),
    (b"\x02\x21\x4c\x18", _program("lz4", "-dc")),
    (b"\x89LZO", _program("lzop", "-dc")),
)


def elf_build_id(path: Path) -> str | None:
    """The build-id of an ELF file, in lower-case hexadecimal; None when it carries none.

    Raises:
        ImageError: the file cannot be read, or is not a whole little-endian 64-bit ELF file.
    """
    try:
        with path.open("rb") as file:
            return _build_id(file)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(f"cannot read the build-id of {path}: {error}") from error


def bzimage_build_id(path: Path) -> str | None:
    """The build-id of the vmlinux that is packed in a bzImage; None when it carries none.

    Raises:
        ImageError: the file cannot be read, is not a bzImage of boot protocol 2.08 or later, or
            its payload cannot be unpacked.
    """
    try:
        image = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _build_id(io.BytesIO(_payload(image)))
    except (ImageError, lzma.LZMAError, zlib.error, OSError) as error:  # bz2 raises OSError
        raise ImageError(f"cannot read the build-id of {path}: {error}") from error


def kernel_build_id(path: Path) -> str | None:
    """The build-id of anything that QEMU's -kernel takes: a bzImage, or an ELF file with a PVH
    entry. Errors as for the two functions above."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(ELF_MAGIC))
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    return elf_build_id(path) if magic == ELF_MAGIC else bzimage_build_id(path)


def _payload(image: bytes) -> bytes:
    if len(image) < PAYLOAD_LENGTH + 4 or image[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError("it is neither an ELF file nor a bzImage")
    (protocol,) = struct.unpack_from("<H", image, HEADER_MAGIC + 4)
    if protocol < FIRST_PROTOCOL_WITH_PAYLOAD:
        raise ImageError(f"boot protocol {protocol:#06x} is older than 2.08 and tells no payload")
    setup_sectors = image[SETUP_SECTS] or 4  # 0 means 4, for old boot loaders
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) < length or length < 4:
        raise ImageError(f"it ends before its payload does, at {start + length:#x}")
    if payload.startswith(ELF_MAGIC):  # CONFIG_KERNEL_UNCOMPRESSED
        return payload
    for magic, decompress in DECOMPRESSORS:
        if payload.startswith(magic):
            return decompress(payload)
    raise ImageError(f"its compression is not known, the payload begins with {payload[:8].hex()}")


def _build_id(file: BinaryIO) -> str | None:
    header = _read(file, 0, 64)
    if header[:4] != ELF_MAGIC:
        raise ImageError("it is not an ELF file")
    if header[4:6] != b"\x02\x01":
        raise ImageError("it is not a little-endian 64-bit ELF file")
    phoff, shoff = struct.unpack_from("<QQ", header, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", header, 54)
    notes = []
    for index in range(phnum):
        entry = _read(file, phoff + index * phentsize, 56)
        kind, offset, size, align = struct.unpack("<I4xQ16xQ8xQ", entry)
        if kind == PT_NOTE:
            notes.append((offset, size, align))
    for index in range(shnum if not notes else 0):  # relocatable files have sections alone
        entry = _read(file, shoff + index * shentsize, 64)
        kind, offset, size, align = struct.unpack("<4xI16xQQ8xQ8x", entry)
        if kind == SHT_NOTE:
            notes.append((offset, size, align))
    for offset, size, align in notes:
        build_id = _find_note(_read(file, offset, size), 8 if align == 8 else 4)
        if build_id is not None:
            return build_id
    return None


def _find_note(notes: bytes, align: int) -> str | None:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name = position + 12
        contents = -(-(name + name_size) // align) * align
        if kind == NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[contents : contents + size].hex()
        position = -(-(contents + size) // align) * align
    return None


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    end = file.seek(0, io.SEEK_END)
    if offset + size > end:  # asked first: a damaged header can ask for more than memory holds
        raise ImageError(f"it ends at {end:#x}, before {offset + size:#x}")
    file.seek(offset)
    return file.read(size)

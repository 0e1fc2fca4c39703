# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs: busybox and an init script, packed as qemu-images/initramfs/initramfs.list says.

The list is in the format of the kernel's usr/gen_init_cpio, of which the types ``dir``, ``file``,
``nod`` and ``slink`` are known here. Writing the archive ourselves needs no root for the device
node, and makes the same bytes from the same input.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from gdb_sme.cachedir import cache_directory
from gdb_sme.errors import ImageError
from gdb_sme.harness.images import cache
from gdb_sme.harness.images.manifest import IMAGES_DIRECTORY

LIST = IMAGES_DIRECTORY / "initramfs" / "initramfs.list"
SHELL_MARKER = "gdb_sme: shell ready"
PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of an archive.

    Attributes:
        name: path in the guest, without a leading slash.
        mode: st_mode, type and permissions.
        contents: of a file, or the target of a symbolic link.
        device: major and minor number of a device node.
    """

    name: str
    mode: int
    contents: bytes = b""
    device: tuple[int, int] = (0, 0)


def newc(nodes: tuple[Node, ...]) -> bytes:
    """A cpio archive in the format newc, which the kernel describes in
    Documentation/driver-api/early-userspace/buffer-format.rst.

    All nodes belong to root and are of the time 0.
    """
    archive = io.BytesIO()
    for inode, node in enumerate((*nodes, Node("TRAILER!!!", 0)), start=1):
        name = node.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(node.mode) else 1
        fields = (inode, node.mode, 0, 0, links, 0, len(node.contents), 0, 0, *node.device)
        header = "".join(f"{field:08x}" for field in (*fields, len(name), 0))
        archive.write(b"070701" + header.encode() + name)
        archive.write(bytes(-archive.tell() % 4) + node.contents)
        archive.write(bytes(-archive.tell() % 4))
    return archive.getvalue()


def parse_list(path: Path, files: dict[str, Path]) -> tuple[Node, ...]:
    """The nodes that a list in the format of gen_init_cpio describes.

    Args:
        path: the list; files are relative to its directory.
        files: what words of the form ``${NAME}`` stand for.

    Raises:
        ImageError: a line is none of the known ones; names it.
        OSError: a file cannot be read.
    """
    nodes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].split()
        try:
            match words:
                case []:
                    pass
                case ["dir", name, mode, "0", "0"]:
                    nodes.append(Node(name.lstrip("/"), stat.S_IFDIR | int(mode, 8)))
                case ["file", name, source, mode, "0", "0"]:
                    variable = source.removeprefix("${").removesuffix("}")
                    file = files[variable] if variable != source else path.parent / source
                    contents = file.read_bytes()
                    nodes.append(Node(name.lstrip("/"), stat.S_IFREG | int(mode, 8), contents))
                case ["slink", name, target, mode, "0", "0"]:
                    contents = target.encode()
                    nodes.append(Node(name.lstrip("/"), stat.S_IFLNK | int(mode, 8), contents))
                case ["nod", name, mode, "0", "0", "c", major, minor]:
                    device = (int(major), int(minor))
                    nodes.append(Node(name.lstrip("/"), stat.S_IFCHR | int(mode, 8), device=device))
                case _:
                    raise ValueError("no known kind of line")
        except (KeyError, ValueError) as error:
            raise ImageError(f"{path}:{number}: cannot understand {line!r}") from error
    return tuple(nodes)


def static_busybox() -> Path:
    """The machine's busybox.

    Raises:
        ImageError: there is none, or it needs libraries, which the initramfs has not.
    """
    found = shutil.which("busybox")
    if found is None:
        raise ImageError("busybox is needed for the initramfs; install the package busybox-static")
    path = Path(found)
    elf = path.read_bytes()
    static = elf.startswith(b"\x7fELF")
    if static:
        phoff, phentsize, phnum = struct.unpack_from("<32xQ14xHH", elf)
        kinds = [struct.unpack_from("<I", elf, phoff + n * phentsize) for n in range(phnum)]
        static = (PT_INTERP,) not in kinds
    if not static:
        raise ImageError(
            f"{path} is no statically linked program, so of no use in the initramfs; "
            "install the package busybox-static in its place"
        )
    return path


def initramfs() -> Path:
    """The archive, in the cache under a name by its contents.

    It is packed anew each time, which takes milliseconds, and compared: so it follows each change
    of busybox and of the recipe, and damage cannot last.

    Raises:
        ImageError: there is no static busybox, or the recipe has a mistake.
        OSError: the cache cannot be written.
    """
    archive = newc(parse_list(LIST, {"BUSYBOX": static_busybox()}))
    directory = cache_directory() / "initramfs"
    path = directory / f"initramfs-{hashlib.sha256(archive).hexdigest()[:16]}.cpio"
    try:
        if path.read_bytes() == archive:
            return path
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
    cache.replace_file(path, archive)
    return path

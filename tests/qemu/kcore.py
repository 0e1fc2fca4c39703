# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's gdb with gdb_sme, in a guest's initramfs, for the guest's own /proc/kcore."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from gdb_sme.harness.gdb import PACKAGE
from gdb_sme.harness.images.initramfs import Node
from gdb_sme.harness.layout import MachineConfig
from tests.qemu.initrd import DIRECTORY, FILE, PROGRAM, with_files

#: The tests run with the Python that gdb embeds, the system's.
_PYTHON = Path(sysconfig.get_path("stdlib"))
_GDB_DATA = Path("/usr/share/gdb")
_NOT_NEEDED = ("config-*", "dist-packages", "lib2to3", "pydoc_data", "distutils", "asyncio")

#: Debug information that is of no use without stack frames and lines; relocations would make gdb
#: apply them all.
_SECTIONS = (".rela*", ".debug_loclists", ".debug_aranges", ".debug_frame")


#: For the guest's shell: gdb runs the commands, and leaves what each says in /out/NUMBER.
RUN = "mkdir /out; /usr/bin/gdb -nx -batch -x /commands /vmlinux /proc/kcore > /out/gdb 2>&1"


def with_gdb(config: MachineConfig, directory: Path, commands: Sequence[str]) -> MachineConfig:
    """The machine with gdb, the extension, the kernel's vmlinux, and what gdb is to run."""
    gdb = shutil.which("gdb")
    vmlinux = config.image.vmlinux
    assert gdb is not None
    assert vmlinux is not None
    files = {Path(gdb): Path(gdb), Path("/vmlinux"): _indexed(vmlinux, directory)}
    files |= {path: path for path in _libraries(gdb)}
    for tree in (_PYTHON, _GDB_DATA):
        files |= {path: path for path in _tree(tree)}
    files |= {Path("/gdb_sme") / path.relative_to(PACKAGE): path for path in _tree(PACKAGE)}
    script = "source /gdb_sme/plugin.py\n" + "".join(
        f"pipe {command} | cat > /out/{number}\n" for number, command in enumerate(commands)
    )
    run = Node("commands", FILE, script.encode())
    return with_files(config, directory, *_nodes(files), run)


def _indexed(vmlinux: Path, directory: Path) -> Path:
    """A copy of ``vmlinux`` that is smaller, and has an index: gdb reads little of it then."""
    copy = directory / "vmlinux"
    remove = [word for section in _SECTIONS for word in ("--remove-section", section)]
    subprocess.run(["objcopy", *remove, vmlinux, copy], check=True)
    subprocess.run(["gdb-add-index", copy], check=True)
    return copy


def _libraries(program: str) -> list[Path]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", said)]


def _tree(top: Path) -> Iterator[Path]:
    """The files below ``top``."""
    for directory, names, files in os.walk(top):
        here = Path(directory)
        names[:] = [name for name in names if not any(map(here.joinpath(name).match, _NOT_NEEDED))]
        yield from (here / name for name in files if (here / name).is_file())


def _nodes(files: dict[Path, Path]) -> Iterator[Node]:
    """The archive's entries for files by their places in the guest, directories first."""
    directories = {parent for path in files for parent in path.parents}
    for path in sorted(directories - {Path("/")}):
        yield Node(str(path).lstrip("/"), DIRECTORY)
    for place, path in files.items():
        mode = PROGRAM if os.access(path, os.X_OK) else FILE
        yield Node(str(place).lstrip("/"), mode, path.read_bytes())

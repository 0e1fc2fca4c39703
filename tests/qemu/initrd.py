# SPDX-License-Identifier: GPL-2.0-or-later
"""More files for a guest's initramfs."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

from gdb_sme.harness.images.initramfs import Node, newc
from gdb_sme.harness.layout import MachineConfig

FILE, PROGRAM, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755


def with_files(config: MachineConfig, directory: Path, *nodes: Node) -> MachineConfig:
    """The machine with more in its initramfs, which is written into ``directory``."""
    assert config.image.initrd is not None
    initrd = config.image.initrd.read_bytes()
    path = directory / "initrd"
    path.write_bytes(initrd + bytes(-len(initrd) % 4) + newc(nodes))
    return replace(config, image=replace(config.image, initrd=path))

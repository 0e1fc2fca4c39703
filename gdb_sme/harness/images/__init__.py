# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images to boot under QEMU: described in a manifest, kept in a cache, checked on use."""

from gdb_sme.harness.images.buildid import bzimage_build_id, elf_build_id, kernel_build_id
from gdb_sme.harness.images.image import Image, obtain, obtain_user_kernel, update
from gdb_sme.harness.images.progress import Progress

__all__ = [
    "Image",
    "Progress",
    "bzimage_build_id",
    "elf_build_id",
    "kernel_build_id",
    "obtain",
    "obtain_user_kernel",
    "update",
]

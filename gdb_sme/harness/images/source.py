# SPDX-License-Identifier: GPL-2.0-or-later
"""What every way to obtain a kernel image has in common; each way is one file beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gdb_sme.harness.images.progress import Progress


@dataclass(frozen=True, slots=True)
class Taken:
    """What a source has put into the directory that it was given.

    Attributes:
        version: of the image, in the source's own terms.
        kernel: name of the file that QEMU's -kernel takes.
        vmlinux: name of the ELF file with the symbols; may be the same file.
        files: names of all files to keep, these two included.
        origin: what they were made from, one line each, for people.
    """

    version: str
    kernel: str
    vmlinux: str
    files: tuple[str, ...]
    origin: tuple[str, ...]


class Source(Protocol):
    """Where the files of an image come from. Errors of all methods are ImageError."""

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants on offer, the default first; empty when there is but one image."""

    def outdated(self, version: str) -> bool:
        """Whether ``version``, which is cached, is not what this clone's recipe makes any more.

        Asked at every use, so it takes no network. A newer version that others offer makes none
        outdated: a cached one is kept until it is updated."""

    def newest(self, progress: Progress) -> str:
        """The newest version on offer."""

    def fetch(
        self, variant: str | None, version: str | None, work: Path, progress: Progress
    ) -> Taken:
        """Put the files of ``version`` into ``work``, an empty directory.

        ``version`` None means the newest; so does one that is no longer to be had.
        """

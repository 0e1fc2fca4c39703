# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images of kind "build": made by a Makefile in this clone.

``make -C RECIPE VARIANT=variant OUT=directory`` leaves a ``vmlinux`` in the directory, an ELF file
with DWARF and a PVH entry, so that it is kernel and symbols in one.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import child
from gdb_sme.harness.images.progress import Progress
from gdb_sme.harness.images.source import Taken

VMLINUX = "vmlinux"


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """See ``source.Source``.

    Attributes:
        directory: of the Makefile.
        variants: values of VARIANT that it takes, the default first.
    """

    directory: Path
    variants: tuple[str, ...]

    def outdated(self, version: str) -> bool:
        """Whether a file of the recipe has changed."""
        return version != recipe_hash(self.directory)

    def newest(self, progress: Progress) -> str:
        """A hash over the recipe."""
        return recipe_hash(self.directory)

    def fetch(
        self, variant: str | None, version: str | None, work: Path, progress: Progress
    ) -> Taken:
        """See ``source.Source``; the recipe as it stands is the only version."""
        built = recipe_hash(self.directory)
        command = ["make", "-C", str(self.directory), f"OUT={work}"]
        if variant is not None:
            command.append(f"VARIANT={variant}")
        title = " ".join(filter(None, ("building", self.directory.name, variant)))
        run_make(command, title, progress)
        if not (work / VMLINUX).is_file():
            raise ImageError(f"`{' '.join(command)}` made no {VMLINUX}")
        return Taken(
            version=built,
            kernel=VMLINUX,
            vmlinux=VMLINUX,
            files=(VMLINUX,),
            origin=(f"{self.directory.name}, built by make",),
        )


def recipe_hash(directory: Path) -> str:
    """A hash over names and contents of the files of the recipe in ``directory``.

    Not over those that are hidden, nor over what a make by hand has left in ``build``.

    Raises:
        ImageError: there is no Makefile.
    """
    digest = hashlib.sha256()
    paths = []
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        hidden = parts[0] == "build" or any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden:
            paths.append(path)
    if directory / "Makefile" not in paths:
        raise ImageError(f"there is no Makefile in {directory}")
    for path in paths:
        name = str(path.relative_to(directory)).encode()
        contents = path.read_bytes()
        digest.update(b"%d:%b%d:%b" % (len(name), name, len(contents), contents))
    return digest.hexdigest()[:16]


def run_make(command: Sequence[str], title: str, progress: Progress) -> None:
    """Run ``command``, a make, and show under ``title`` that it is at work.

    Raises:
        ImageError: it failed, with the lines in which it said why.
    """
    with progress.step(title) as step:
        process = child.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        lines: list[str] = []

        def seen(line: str) -> None:
            lines.append(line)
            step(len(lines))

        if child.follow(process, process.stdout, seen):
            told = [line for line in lines if "error" in line.lower()] or lines
            raise ImageError(
                f"`{' '.join(command)}` failed: {'; '.join(told[-3:])}; "
                "`scripts/install-deps build` installs what it takes"
            )

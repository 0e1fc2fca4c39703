# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images of kind "debian-source": built here from one of Debian's linux-source packages.

The package is unpacked into the cache and not installed. The recipe is a Makefile in this clone:
``make -f RECIPE/Makefile SOURCE=tree SERIES=series VARIANT=variant OUT=directory`` changes the tree
as the variant needs and leaves ``bzImage``, ``vmlinux``, ``config`` and a module, ``crc4.ko``, in
the directory. A tree in which another variant was built is as good as a fresh one.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import apt, child
from gdb_sme.harness.images.progress import Progress
from gdb_sme.harness.images.recipe import recipe_hash, run_make
from gdb_sme.harness.images.source import Taken

FILES = ("bzImage", "vmlinux", "config", "crc4.ko")
_SEPARATOR = "+recipe."


@dataclass(frozen=True, slots=True)
class DebianTreeSource:
    """See ``source.Source``. A version is the package's, with a hash over the recipe behind it.

    Attributes:
        series: upstream version, such as ``"6.1"``; the package is ``linux-source-SERIES``.
        suites: where Debian has it, for people.
        directory: of the recipe.
        variants: values of VARIANT that it takes, the default first.
        trees: where a tree is kept for the next variant; None when it is not.
    """

    series: str
    suites: str
    directory: Path
    variants: tuple[str, ...]
    trees: Path | None = None

    @property
    def package(self) -> str:
        """Name of the package with the sources."""
        return f"linux-source-{self.series}"

    def outdated(self, version: str) -> bool:
        """Whether the recipe has changed; a newer package is for ``newest`` to find."""
        return version.rpartition(_SEPARATOR)[2] != recipe_hash(self.directory)

    def newest(self, progress: Progress) -> str:
        """The newest package in the archive; in apt's lists, if they cannot be refreshed."""
        apt.refresh_if_possible(progress)
        return self._version(self._resolve(None))

    def fetch(
        self, variant: str | None, version: str | None, work: Path, progress: Progress
    ) -> Taken:
        """See ``source.Source``; the recipe is always taken as it stands now."""
        wanted = None if version is None else version.rpartition(_SEPARATOR)[0]
        trees = self.trees or work / "trees"
        found = self._unpacked(wanted, trees) or self._unpack(wanted, trees, progress)
        tree = trees / found / self.package
        command = ["make", "-f", str(self.directory / "Makefile"), f"SOURCE={tree}"]
        command += [f"SERIES={self.series}", f"OUT={work}"]
        if variant is not None:
            command.append(f"VARIANT={variant}")
        run_make(command, f"building Linux {found} {variant or ''}".rstrip(), progress)
        missing = [name for name in FILES if not (work / name).is_file()]
        if missing:
            raise ImageError(f"`{' '.join(command)}` made no {' and no '.join(missing)}")
        if trees != self.trees:
            shutil.rmtree(trees)
        return Taken(
            version=self._version(found),
            kernel=FILES[0],
            vmlinux=FILES[1],
            files=FILES,
            origin=(f"{self.package} {found}, built by {self.directory.name}/Makefile",),
        )

    def _unpacked(self, wanted: str | None, trees: Path) -> str | None:
        """Version of the tree that is there already and will do, None without one."""
        found = [path.parent.name for path in trees.glob(f"*/{self.package}")]
        return next((version for version in found if wanted in (None, version)), None)

    def _unpack(self, wanted: str | None, trees: Path, progress: Progress) -> str:
        """Put the tree of version ``wanted``, or the newest, into ``trees``; its version."""
        debs = trees / f"{self.package}.debs"
        debs.mkdir(parents=True)
        try:
            found = self._download(wanted, debs, progress)
        except ImageError:
            # Most often the lists are missing, or older than the archive.
            apt.refresh_if_possible(progress)
            found = self._download(wanted, debs, progress)
        archive = f"{self.package}.tar.xz"
        (deb,) = debs.glob(f"{self.package}_*.deb")
        apt.extract(deb, (f"usr/src/{archive}",), debs, progress)
        deb.unlink()
        _unpack(debs / archive, progress)
        (debs / archive).unlink()
        if not (debs / self.package / "Makefile").is_file():
            raise ImageError(f"{self.package} {found} has no kernel's Makefile in {self.package}/")
        debs.rename(trees / found)
        return found

    def _version(self, package_version: str) -> str:
        return f"{package_version}{_SEPARATOR}{recipe_hash(self.directory)}"

    def _download(self, wanted: str | None, debs: Path, progress: Progress) -> str:
        found = self._resolve(wanted)
        title = f"sources of Linux {found}"
        apt.download(title, [(self.package, found)], debs, progress)
        return found

    def _resolve(self, wanted: str | None) -> str:
        """Version ``wanted`` of the package if it is to be had, else the newest."""
        versions = [package.version for package in apt.show(self.package)]
        if wanted in versions:
            return wanted
        if not versions:
            raise ImageError(
                f"apt offers no {self.package}; Debian has it in {self.suites}: add that to apt's "
                "sources and run `apt-get update` as root"
            )
        return apt.newest_first(versions)[0]


def _unpack(archive: Path, progress: Progress) -> None:
    """Unpack a .tar.xz beside itself."""
    command = ["tar", "--extract", "--xz", "--file", archive.name]
    command += ["--checkpoint=5000", "--checkpoint-action=echo"]
    with progress.step(f"unpacking the tree in {archive.name}") as step:
        process = child.start(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=archive.parent
        )
        assert process.stdout is not None
        lines: list[str] = []

        def seen(line: str) -> None:
            lines.append(line)
            step(len(lines))

        if child.follow(process, process.stdout, seen):
            raise ImageError(f"cannot unpack {archive.name}: {' '.join(lines[-1:])}")

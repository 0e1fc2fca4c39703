# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images of kind "debian": the kernel and its vmlinux with DWARF from Debian's archive.

A metapackage (linux-image-cloud-amd64) leads to the current version, since old ones leave the
archive. The kernel is taken from the -unsigned package, which is the one built together with the
-dbg package, and the same but for the signature.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import apt
from gdb_sme.harness.images.progress import Progress
from gdb_sme.harness.images.relocations import drop_relocations
from gdb_sme.harness.images.source import Taken

ARCHITECTURE = "amd64"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that the metapackages name.

    Attributes:
        release: as uname -r shows it, for example ``6.1.0-56-cloud-amd64``.
        version: of the packages, for example ``6.1.192-2``.
    """

    release: str
    version: str

    @property
    def image(self) -> str:
        """Name of the package with the kernel."""
        return f"linux-image-{self.release}-unsigned"

    @property
    def debug(self) -> str:
        """Name of the package with vmlinux."""
        return f"linux-image-{self.release}-dbg"


def candidates(packages: Sequence[apt.Package], series: str) -> tuple[Candidate, ...]:
    """The kernels for which ``packages`` holds both metapackages, kernel and -dbg, in one version.

    Args:
        packages: the metapackages, as ``apt.show`` gives them.
        series: upstream version that the packages' version must begin with, such as ``"6.1"``.

    Returns:
        The newest first.
    """
    found: dict[bool, set[Candidate]] = {False: set(), True: set()}
    for package in packages:
        pattern = r"\blinux-image-(\d\S*?)(-dbg)? \(= ([^)]+)\)"
        for release, debug, version in re.findall(pattern, package.depends):
            if version.startswith(f"{series}."):
                found[bool(debug)].add(Candidate(release, version))
    both = found[False] & found[True]
    order = apt.newest_first([candidate.version for candidate in both])
    return tuple(sorted(both, key=lambda candidate: order.index(candidate.version)))


@dataclass(frozen=True, slots=True)
class DebianSource:
    """See ``source.Source``.

    Attributes:
        metapackages: names of the metapackages of the kernel, in any Debian release that has this
            series; those of vmlinux have -dbg behind that.
        series: upstream version that is wanted, such as ``"6.1"``.
        suites: where Debian has it, for people.
    """

    metapackages: tuple[str, ...]
    series: str
    suites: str

    @property
    def variants(self) -> tuple[str, ...]:
        """None."""
        return ()

    def outdated(self, version: str) -> bool:
        """Never: nothing of it is made here."""
        return False

    def newest(self, progress: Progress) -> str:
        """The newest version in the archive; in apt's lists, if they cannot be refreshed."""
        apt.refresh_if_possible(progress)
        return self._resolve(None).version

    def fetch(
        self, variant: str | None, version: str | None, work: Path, progress: Progress
    ) -> Taken:
        """See ``source.Source``; refreshes apt's lists when they are missing or outdated."""
        try:
            candidate = self._resolve(version)
        except ImageError:
            apt.refresh_if_possible(progress)
            candidate = self._resolve(version)
        debs = work / "debs"
        try:
            self._download(candidate, debs, progress)
        except ImageError:
            # Most often the lists are older than the archive, which has a newer version by now.
            apt.refresh_if_possible(progress)
            promised, candidate = candidate, self._resolve(version)
            if candidate == promised:
                raise
            self._download(candidate, debs, progress)
        release = candidate.release
        kernel, config, vmlinux = (f"{name}-{release}" for name in ("vmlinuz", "config", "vmlinux"))
        (image,) = debs.glob(f"{candidate.image}_*.deb")
        apt.extract(image, (f"boot/{kernel}", f"boot/{config}"), work, progress)
        (debug,) = debs.glob(f"{candidate.debug}_*.deb")
        apt.extract(debug, (f"usr/lib/debug/boot/{vmlinux}",), work, progress)
        drop_relocations(work / vmlinux)
        shutil.rmtree(debs)
        return Taken(
            version=candidate.version,
            kernel=kernel,
            vmlinux=vmlinux,
            files=(kernel, config, vmlinux),
            origin=tuple(
                f"{name} {candidate.version}" for name in (candidate.image, candidate.debug)
            ),
        )

    def _download(self, candidate: Candidate, debs: Path, progress: Progress) -> None:
        if debs.exists():  # one of another version may have come
            shutil.rmtree(debs)
        debs.mkdir()
        names = (candidate.image, candidate.debug)
        packages = [(name, candidate.version) for name in names]
        apt.download(f"Debian kernel {candidate.release}", packages, debs, progress)

    def _resolve(self, version: str | None) -> Candidate:
        """``version`` if it is to be had, else the newest, of those with both packages there."""
        names = [name + suffix for name in self.metapackages for suffix in ("", "-dbg")]
        found = candidates(apt.show(*names), self.series)
        for candidate in sorted(found, key=lambda candidate: candidate.version != version):
            there = {
                (package.name, package.version)
                for package in apt.show(candidate.image, candidate.debug)
            }
            if {(name, candidate.version) for name in (candidate.image, candidate.debug)} <= there:
                return candidate
        raise ImageError(
            f"apt offers no {' or '.join(self.metapackages)} of series {self.series} that comes "
            f"with its -dbg package; Debian has it in {self.suites}: add that to apt's sources "
            "and run `apt-get update` as root"
        )

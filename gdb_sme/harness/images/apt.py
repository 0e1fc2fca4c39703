# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages from Debian's archive through apt, which checks signatures; nothing is installed."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import IO

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import child
from gdb_sme.harness.images.progress import Progress

COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package that apt offers.

    Attributes:
        name, version: as apt shows them.
        depends: the field Depends, word for word.
    """

    name: str
    version: str
    depends: str


def parse_show(text: str) -> tuple[Package, ...]:
    """The packages in the output of ``apt-cache show``, in its order."""
    packages = []
    for stanza in re.split(r"\n\n+", text.strip()):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
        if "Package" in fields and "Version" in fields:
            packages.append(
                Package(fields["Package"], fields["Version"], fields.get("Depends", ""))
            )
    return tuple(packages)


def show(*names: str) -> tuple[Package, ...]:
    """All versions of the packages ``names`` that apt offers; none when it knows none."""
    _, out, _ = child.output(("apt-cache", "show", *names))
    return parse_show(out)


def newest_first(versions: Sequence[str]) -> list[str]:
    """``versions`` in Debian's order, each once, the newest first."""

    def compare(left: str, right: str) -> int:
        status, _, _ = child.output(("dpkg", "--compare-versions", left, "lt", right))
        return -1 if status == 0 else 1

    return sorted(set(versions), key=functools.cmp_to_key(compare), reverse=True)


def refresh(progress: Progress) -> None:
    """Bring apt's lists of packages up to date.

    Raises:
        ImageError: it takes root, and there is neither root nor sudo; or the archive does not
            answer.
    """
    # apt must be able to write its lists. That is root's right, unless APT_CONFIG moves them.
    _, lists, _ = child.output(("apt-config", "shell", "DIR", "Dir::State::lists/d"))
    directory = Path(lists.removeprefix("DIR='").rstrip("'\n"))
    command: tuple[str, ...] = ("apt-get", "-q", "update", "--error-on=any")
    if not os.access(directory if directory.exists() else directory.parent, os.W_OK):
        if which("sudo") is None:
            raise ImageError("it takes root: run `apt-get update` as root")
        command = ("sudo", *(() if sys.stdin.isatty() else ("-n",)), *command)
    with progress.step("apt-get update") as step, tempfile.TemporaryFile() as errors:
        process = child.start(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        count = iter(range(sys.maxsize))
        status = child.follow(process, process.stdout, lambda _: step(next(count)))
        if status:
            raise ImageError(f"apt-get update failed: {_complaint(errors)}")


def refresh_if_possible(progress: Progress) -> None:
    """`refresh`; when that cannot be, say so: what the old lists know may do."""
    try:
        refresh(progress)
    except ImageError as error:
        progress.note(f"cannot refresh apt's lists of packages: {error}")


def download(
    title: str, packages: Sequence[tuple[str, str]], into: Path, progress: Progress
) -> None:
    """Fetch ``packages``, pairs of name and version, as .deb files into the directory ``into``.

    apt checks that the lists are signed and that the files have the hashes which they give.
    ``title`` is what they are, for people.

    Raises:
        ImageError: apt could not fetch them, or does not trust them.
    """
    names = " and ".join(name for name, _ in packages)
    read, write = os.pipe()
    command = ["apt-get", "-q", "-o", f"APT::Status-Fd={write}", "-o", "Acquire::Retries=2"]
    command += ["-o", "APT::Get::AllowUnauthenticated=false"]
    if os.geteuid() == 0:
        # Otherwise apt downloads as the user _apt, who cannot write into the cache, and warns.
        command += ["-o", "APT::Sandbox::User=root"]
    command += ["download", *(f"{name}={version}" for name, version in packages)]
    with tempfile.TemporaryFile() as errors, progress.step(f"downloading {title}", 100) as step:
        try:
            process = child.start(
                command, stdout=errors, stderr=errors, cwd=into, pass_fds=(write,)
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)

        def seen(line: str) -> None:
            if match := re.match(r"dlstatus:\d+:([\d.]+):", line):
                step(float(match[1]))

        if child.follow(process, os.fdopen(read, "rb"), seen) == 0:
            return
        raise ImageError(f"apt-get cannot download {names}: {_complaint(errors)}")


def extract(deb: Path, members: Sequence[str], into: Path, progress: Progress) -> None:
    """Write ``members`` of a package's file tree, and no other, into the directory ``into``.

    Args:
        deb: the package.
        members: paths in the package, without a leading slash; each is written under the last
            part of its name. Reading ends with the last of them.

    Raises:
        ImageError: the package is damaged, or one of them is not in it.
    """
    wanted = set(members)
    with tempfile.TemporaryFile() as errors:
        process = child.start(
            ("dpkg-deb", "--fsys-tarfile", str(deb)), stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        try:
            with (
                process.stdout,
                tarfile.open(fileobj=process.stdout, mode="r|", bufsize=COPY_BYTES) as tree,
            ):
                for member in tree:
                    name = member.name.removeprefix("./")
                    if name not in wanted or not member.isfile():
                        continue
                    source = tree.extractfile(member)
                    assert source is not None
                    with (
                        progress.file_step(f"unpacking {Path(name).name}", member.size) as step,
                        (into / Path(name).name).open("xb") as target,
                    ):
                        while block := source.read(COPY_BYTES):
                            target.write(block)
                            step(target.tell())
                    wanted.remove(name)
                    if not wanted:
                        return
        except tarfile.TarError as error:
            process.wait()
            raise ImageError(
                f"cannot unpack {deb.name}: {_complaint(errors) or str(error)}"
            ) from error
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
    raise ImageError(f"{deb.name} has no {' and no '.join(sorted(wanted))}")


def _complaint(output: IO[bytes]) -> str:
    """The errors in what apt or dpkg wrote to a file, on one line."""
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("E: ") for line in lines if re.match(r"E: |dpkg-deb: ", line)]
    return "; ".join(dict.fromkeys(errors)) or " ".join(lines[-1:])

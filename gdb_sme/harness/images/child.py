# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that fill the cache, started so that none of them outlives this process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from gdb_sme.errors import ImageError

C_LOCALE = {"LC_ALL": "C.UTF-8"}


def start(
    command: Iterable[str],
    *,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    cwd: Path | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start ``command`` with no standard input and messages in English.

    The kernel sends it SIGTERM when this process dies, so that a run which is killed leaves
    nobody behind who writes into the cache.

    Raises:
        ImageError: there is no such program.
    """
    words = tuple(command)
    if shutil.which(words[0]) is None:
        raise ImageError(
            f"the program {words[0]} is needed and not installed; on Debian, "
            "scripts/install-deps installs what this project needs"
        )
    return subprocess.Popen(
        ("setpriv", "--pdeathsig", "TERM", "--", *words),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        pass_fds=pass_fds,
        env={**os.environ, **C_LOCALE},
    )


def output(command: Iterable[str]) -> tuple[int, str, str]:
    """Run ``command``; its exit status, standard output and standard error.

    Raises:
        ImageError: there is no such program.
    """
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        out, err = process.communicate()
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def follow(process: subprocess.Popen[bytes], lines: IO[bytes], seen: Callable[[str], None]) -> int:
    """Call ``seen`` with each line of ``lines`` until it ends; the exit status of ``process``.

    The process is ended when this is left early, by Ctrl-C say.
    """
    try:
        with lines:
            for line in lines:
                seen(line.decode(errors="replace").rstrip("\n"))
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()

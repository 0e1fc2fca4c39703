# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking at the machine's processes from a test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DEADLINE_SECONDS = 60


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def programs_in(directory: Path) -> Iterator[str]:
    """Programs that work in a directory, or below, or are told of it on their command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = os.readlink(process / "cwd")
            words = (process / "cmdline").read_bytes().decode()
        except OSError:  # ended in between
            continue
        if str(directory) in words or place.startswith(str(directory)):
            yield words.replace("\0", " ")

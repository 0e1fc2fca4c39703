# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests on real kernels share: sessions, and the runner with an eye on what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.harness.pytest_plugin import boot, booted

__all__ = ["Runner", "boot", "booted", "runner"]

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DEADLINE = 240.0


class Runner:
    """Runs scripts/sme-debug, or another script.

    It knows every process of the run by a word in its environment.
    """

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self._word = f"SME_TEST_RUN={uuid.uuid4()}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment that the run and all of its processes get."""
        name, _, value = self._word.partition("=")
        return {**os.environ, name: value, "TMPDIR": str(self.temporary)}

    def run(self, *arguments: str, script: str = "sme-debug") -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            [SCRIPTS / script, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=DEADLINE,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start, and go on."""
        return subprocess.Popen(
            [SCRIPTS / "sme-debug", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def processes(self) -> dict[int, str]:
        """The run's living processes, with their names."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self._word.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (path / "comm").read_text().strip()
            except OSError:  # it ended meanwhile, or is another user's
                continue
        return found

    def pid(self, name: str) -> int:
        """The one process of that name."""
        (pid,) = (pid for pid, comm in self.processes().items() if comm == name)
        return pid

    def wait_until_gone(self) -> None:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + DEADLINE
        while left := self.processes():
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)

    def left_behind(self) -> list[str]:
        """Names of what the run left in its directory for temporary files."""
        return sorted(path.name for path in self.temporary.iterdir())

    def kill(self) -> None:
        """End what is left of the run."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def runner(short_path: Path) -> Iterator[Runner]:
    """A runner with a TMPDIR of its own."""
    made = Runner(short_path)
    yield made
    made.kill()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes and directories that do not outlive their maker, and gdb's line to the harness."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gdb_sme.errors import BootError
from gdb_sme.harness.control import Control
from gdb_sme.harness.process import PrivateDirectory, tethered

PARENT = """
import subprocess, sys
from gdb_sme.harness.process import PrivateDirectory, tethered
private = PrivateDirectory()
child = subprocess.Popen(tethered(["sleep", "1000"]), stdout=2, start_new_session=True)
print(child.pid, private.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    return short_path


def wait_for_end(pid: int) -> None:
    """Wait until the process is gone, or dead and only not yet collected."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        assert poller.poll(60_000), f"process {pid} is still there"
    finally:
        os.close(descriptor)


def test_a_killed_run_takes_its_children_along_and_the_next_one_cleans_up(base: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(base)},
    )
    assert parent.stdout is not None
    pid, left = parent.stdout.readline().split()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline, "the child did not start"
    with PrivateDirectory():
        assert Path(left).is_dir(), "a living run's directory was removed"
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_for_end(int(pid))
    assert Path(left).is_dir()
    with PrivateDirectory() as private:
        assert not Path(left).exists()
        assert private.path.is_dir()
    assert list(base.iterdir()) == []


def test_a_child_whose_parent_is_gone_does_not_start(base: Path) -> None:
    command = tethered(["touch", str(base / "started")])
    command[command.index(str(os.getpid()))] = "1"
    assert subprocess.run(command, check=False).returncode != 0
    assert not (base / "started").exists()


def test_the_directory_is_private_and_closing_twice_is_harmless(base: Path) -> None:
    private = PrivateDirectory()
    assert private.path.stat().st_mode & 0o777 == 0o700
    (private.path / "file").touch()
    private.close()
    private.close()
    assert list(base.iterdir()) == []


def test_a_path_too_long_for_sockets_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = base / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(BootError, match="set TMPDIR to a shorter one"):
        PrivateDirectory()
    assert list(deep.iterdir()) == []


def test_the_control_line_passes_whole_messages(base: Path) -> None:
    with (
        Control(base / "control.sock") as control,
        socket.socket(socket.AF_UNIX) as gdb,
    ):
        assert control.messages(0) == []
        gdb.connect(str(base / "control.sock"))
        assert control.messages(60) == []
        gdb.sendall(b'{"event": "booting"}\n{"event": "sto')
        assert control.messages(60) == [{"event": "booting"}]
        gdb.sendall(b'pped", "reached": true}\n')
        assert control.messages(60) == [{"event": "stopped", "reached": True}]
        control.go(True)
        assert json.loads(gdb.recv(100)) == {"go": True}
        gdb.close()
        assert control.messages(60) == []
        assert control.messages(0) == []
        control.go(False)
        control.go(False)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import io
import os
import re

import pytest

from gdb_sme.harness.images import progress as module
from gdb_sme.harness.images.progress import SMALL_BYTES, Progress


def test_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    log = io.StringIO()
    with Progress(log).step("counting", 4) as to:
        to(1)
        to(4)
    assert re.sub(r"\d+\.\d s", "N s", log.getvalue()).splitlines() == [
        "counting ...",
        "counting: 25 %",
        "counting: 100 %",
        "counting: done (N s)",
    ]


def test_log_is_not_flooded() -> None:
    log = io.StringIO()
    with Progress(log).step("counting", 1_000_000) as to:
        for count in range(1000):
            to(count)
    assert len(log.getvalue().splitlines()) == 2


def test_failure_shows() -> None:
    log = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(log).step("dividing"):
        _ = 1 / 0
    assert "dividing: not finished (" in log.getvalue()


def test_small_files_are_not_worth_a_line() -> None:
    log = io.StringIO()
    with Progress(log).file_step("reading", SMALL_BYTES - 1) as to:
        to(1)
    assert log.getvalue() == ""
    with Progress(log).file_step("reading", SMALL_BYTES) as to:
        to(1)
    assert log.getvalue().startswith("reading ...\n")


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDRAW_SECONDS", 0.0)
    ours, theirs = os.openpty()
    title = "a long title " * 20
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as terminal:
        with Progress(terminal).step(title, 2) as to:
            to(1)
        terminal.flush()
        drawn = ""
        while not drawn.endswith("\n"):  # a terminal gives what it has, in pieces
            drawn += screen.read(65536).decode()
    first, half, last, *_ = drawn.split("\r\x1b[K")[1:]
    assert first.endswith(f"[{'.' * 24}]   0 %")
    assert half.endswith(f"[{'#' * 12}{'.' * 12}]  50 %")
    assert max(len(first), len(half)) < 80  # else it would wrap, and each drawing be a new line
    assert last.startswith(f"{title}: done (")

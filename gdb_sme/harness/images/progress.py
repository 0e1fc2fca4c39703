# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of what takes more than a few seconds: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

BAR_WIDTH = 24
REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0
SMALL_BYTES = 1 << 26  # a smaller file is read before a person could read a title


class Progress:
    """Shows work on ``stream`` (standard error when None), so that standard output stays clean."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream

    def note(self, text: str) -> None:
        """Write one line."""
        self._stream.write(text + "\n")
        self._stream.flush()

    @contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Show the work of the ``with`` block, from its title to how it ended and after how long.

        Args:
            title: what is done, in a few words.
            total: where the work ends, in any unit; None when that is not known.

        Yields:
            The function that is told where the work stands; it is cheap to call often.
        """
        draw = self._draw if self._stream.isatty() else self._log
        pause = REDRAW_SECONDS if self._stream.isatty() else LOG_SECONDS
        started = shown = time.monotonic()

        def to(done: float) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= pause:
                shown = now
                draw(title, None if total is None else done / total, now - started)

        draw(title, None if total is None else 0.0, 0.0)
        outcome = "not finished"
        try:
            yield to
            outcome = "done"
        finally:
            clear = "\r\x1b[K" if self._stream.isatty() else ""
            self.note(f"{clear}{title}: {outcome} ({time.monotonic() - started:.1f} s)")

    @contextmanager
    def file_step(self, title: str, size: int) -> Iterator[Callable[[float], None]]:
        """The same for reading or writing ``size`` bytes; nothing is shown when they are few."""
        if size < SMALL_BYTES:
            yield lambda done: None
        else:
            with self.step(title, size) as to:
                yield to

    def _draw(self, title: str, part: float | None, seconds: float) -> None:
        state = f"{seconds:.0f} s"
        if part is not None:
            filled = int(BAR_WIDTH * min(part, 1.0))
            state = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {100 * part:3.0f} %"
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        room = max(columns - len(state) - 2, 0)  # a line that wraps could not be drawn over
        self._stream.write(f"\r\x1b[K{title[:room]} {state}")
        self._stream.flush()

    def _log(self, title: str, part: float | None, seconds: float) -> None:
        state = f"{seconds:.0f} s" if part is None else f"{100 * part:.0f} %"
        self.note(f"{title}: {state}" if seconds else f"{title} ...")

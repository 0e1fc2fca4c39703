# SPDX-License-Identifier: GPL-2.0-or-later
"""A line on the terminal while something takes its time."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

_AFTER = 1.0  # seconds of silence
_EVERY = 0.2


class Progress:
    """Call it with an address as the work goes on; after a second it shows how far that is.

    A context manager that takes its line away at the end. Silent unless standard error is a
    terminal.

    Args:
        what: what is going on: ``"sme dump: at"``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + _AFTER
        self._width = 0
        self._terminal = sys.__stderr__ is not None and os.isatty(2)

    def __call__(self, address: int) -> None:
        now = time.monotonic()
        if now < self._next or not self._terminal:
            return
        self._next = now + _EVERY
        self._show(f"{self._what} {address:#x}")

    def _show(self, text: str) -> None:
        os.write(2, f"\r{text:<{self._width}}".encode())
        self._width = len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._width:
            self._show("")
            os.write(2, b"\r")

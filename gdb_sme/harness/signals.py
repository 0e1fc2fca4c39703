# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that end a run, held back while something is made or removed."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupted(BaseException):
    """A signal asks the run to end. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into one Interrupted, at a time that suits.

    Attributes:
        ignore_sigint: set while gdb has the terminal, where Ctrl-C is meant for gdb alone.
    """

    def __init__(self) -> None:
        self._held = 0
        self._pending: int | None = None
        self._raised = False
        self.ignore_sigint = False

    def __enter__(self) -> Self:
        """From now on these signals come here."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._raised and not isinstance(value, Interrupted):
            # Two signals at once inside a system call: CPython 3.11 makes a SystemError of it.
            assert self._pending is not None
            raise Interrupted(self._pending) from None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.ignore_sigint:
            return
        self._pending = self._pending or number
        self._deliver()

    def _deliver(self) -> None:
        if self._pending is not None and not self._held and not self._raised:
            self._raised = True
            raise Interrupted(self._pending)

    def hold(self) -> None:
        """Put signals off until ``release``: what is made or removed now is so completely."""
        self._held += 1

    def release(self) -> None:
        """Undo one ``hold``; raises Interrupted when a signal has come meanwhile."""
        self._held -= 1
        self._deliver()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What every part of a session shares: it is closed when its block is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """A context manager that gives itself, and ends with `close`."""

    @abstractmethod
    def close(self) -> None:
        """End it. May be called again."""

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

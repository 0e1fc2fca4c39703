# SPDX-License-Identifier: GPL-2.0-or-later
"""pytest fixtures over real kernels. In a ``conftest.py``::

    from gdb_sme.harness.pytest_plugin import boot, booted

``booted`` is for tests that only look: every configuration is booted once a session and shared.
``boot`` is for tests that let the guest run on, or change it: a machine of the test's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from gdb_sme.harness.boot import RESET, Session
from gdb_sme.harness.images import Image, obtain
from gdb_sme.harness.layout import Encryption, MachineConfig, parse_size

_SHARED_MAX = 3
"""Machines kept at a time; standing ones cost memory only, half a GiB each with gdb's share."""


@cache
def _image(name: str) -> Image:
    return obtain(name)


def machine_config(
    image: str,
    encryption: str = "none",
    memory: str = "512M",
    **settings: Any,
) -> MachineConfig:
    """Return the machine for an image's name; ``settings`` are other fields of MachineConfig."""
    return MachineConfig(
        image=_image(image),
        encryption=Encryption(encryption),
        memory=parse_size(memory),
        **settings,
    )


class SharedSessions:
    """Sessions by what was booted and to where, the last ones used kept."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[MachineConfig, str], Session] = {}

    def __call__(
        self,
        image: str,
        encryption: str = "none",
        *,
        until: str = RESET,
        memory: str = "512M",
        **settings: Any,
    ) -> Session:
        """Return a session with ``image`` at the stop ``until``; see ``machine_config``.

        It may have been used before. A user leaves it as it was: at the stop, with gdb's settings,
        registers and memory as found. One whose QEMU or gdb has ended is booted anew.
        """
        key = (machine_config(image, encryption, memory, **settings), until)
        session = self._sessions.pop(key, None)
        if session is not None and not session.alive():
            session.close()
            session = None
        if session is None:
            while len(self._sessions) >= _SHARED_MAX:
                self._sessions.pop(next(iter(self._sessions))).close()
            session = Session(*key)
        self._sessions[key] = session
        return session

    def close(self) -> None:
        """End them all."""
        while self._sessions:
            self._sessions.popitem()[1].close()


class OwnSessions:
    """Sessions for one test, ended with it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(
        self,
        image: str,
        encryption: str = "none",
        *,
        until: str = RESET,
        memory: str = "512M",
        **settings: Any,
    ) -> Session:
        """Boot ``image`` to ``until`` and return the session; see ``machine_config``."""
        config = machine_config(image, encryption, memory, **settings)
        return self._stack.enter_context(Session(config, until))


@pytest.fixture(scope="session")
def booted() -> Iterator[SharedSessions]:
    """Sessions that are booted once: ``booted("debian-6.1", "sme", until="shell")``."""
    sessions = SharedSessions()
    yield sessions
    sessions.close()


@pytest.fixture
def boot() -> Iterator[OwnSessions]:
    """Sessions of this test alone: ``boot("debian-6.1", "sme", until="start_kernel")``."""
    with ExitStack() as stack:
        yield OwnSessions(stack)

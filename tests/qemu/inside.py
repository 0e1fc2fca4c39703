# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside the tested gdb: what would be thousands of commands otherwise.

From outside: ``call(session, "walks", addresses=[...])``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdb_sme.harness.boot import Session


def call(session: Session, function: str, **arguments: Any) -> Any:
    """Call a function of this module in the session's gdb; return what it returned."""
    into = session.machine.directory / "inside.in"
    out = session.machine.directory / "inside.out"
    into.write_text(json.dumps(arguments))
    session.gdb.execute(
        f"python from tests.qemu import inside; inside._answer({function!r}, {str(into)!r},"
        f" {str(out)!r})"
    )
    return json.loads(out.read_text())


def _answer(function: str, into: str, out: str) -> None:
    arguments = json.loads(Path(into).read_text())
    Path(out).write_text(json.dumps(globals()[function](**arguments)))


def walks(addresses: list[int], stub: bool = False) -> list[tuple[int, ...] | str]:
    """Each address walked from the selected CPU's CR3.

    ``stub``: read through QEMU's stub instead of however the target reads. Returns for each (pa,
    page size, whether encrypted, raw value of the last entry), or the level of the hole.
    """
    from gdb_sme.linux.kernel import Kernel
    from gdb_sme.target.session import SESSIONS

    session = SESSIONS.current()
    kernel, cpu = session.kernel, session.cpu
    if stub:
        assert session.target.stub is not None
        kernel = Kernel(session.target.stub, session.symbols, kernel.cpus)
    cr3 = kernel.cr3(cpu)
    assert cr3 is not None
    found: list[tuple[int, ...] | str] = []
    for va in addresses:
        walk = kernel.walk(va, cr3.pa, cpu)
        if walk.mapping is None:
            found.append(walk.hole or str(walk.unreadable or walk.reserved))
        else:
            at = walk.mapping
            found.append((at.pa, at.page_size, at.encrypted, walk.steps[-1].entry.raw))
    return found


def reads_of(command: str) -> list[tuple[int, int]]:
    """Run ``command``, a second time at this stop; return the physical reads of the second run."""
    import gdb

    from gdb_sme.target.session import SESSIONS

    gdb.execute(command, to_string=True)
    memory = SESSIONS.current().kernel.memory
    reads: list[tuple[int, int]] = []

    class Counted:
        """The target's memory, every read noted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(memory, name)

        def read(self, pa: int, length: int) -> bytes:
            reads.append((pa, length))
            return memory.read(pa, length)

    kernel = SESSIONS.current().kernel
    kernel.memory = Counted()
    try:
        gdb.execute(command, to_string=True)
    finally:
        kernel.memory = memory
    return reads


def read_on_and_on(begun: str) -> None:
    """Read through the stub until Ctrl-C; the file ``begun`` appears after the first read."""
    from gdb_sme.target.session import SESSIONS

    stub = SESSIONS.current().target.stub
    assert stub is not None
    while True:
        with stub.batch():
            for pa in range(0, 1 << 20, 4096):
                stub.read_raw(pa, 8)
        Path(begun).touch()

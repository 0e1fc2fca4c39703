# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report holds, and the report as plain text."""

from __future__ import annotations

from dataclasses import dataclass

from gdb_sme.linux.addressmap import Row, State
from gdb_sme.linux.audit.model import Audit, Verdict
from gdb_sme.linux.cr3check import Cr3Report
from gdb_sme.linux.status import Status
from gdb_sme.linux.trace import Timeline
from gdb_sme.render import audit as audit_view
from gdb_sme.render import cr3 as cr3_view
from gdb_sme.render import status as status_view
from gdb_sme.render import svg
from gdb_sme.render import trace as trace_view
from gdb_sme.render.document import Document, plain


@dataclass(frozen=True, slots=True)
class Report:
    """What a report is made of.

    Attributes:
        kernel: the kernel's banner, may be empty.
        status: the answer of `sme status`.
        cr3: the answer of `sme cr3`, or why there is none.
        audit: the answer of `sme audit`.
        rows: the map.
        trace: the answer of `sme trace show`, None without a trace.
    """

    kernel: str
    status: Status
    cr3: Cr3Report | str
    audit: Audit
    rows: tuple[Row, ...]
    trace: Timeline | None

    @property
    def title(self) -> str:
        """The headline."""
        active = "" if self.audit.c_bit is None else f", C-bit {self.audit.c_bit}"
        return f"Memory encryption: {self.audit.scheme}{active}"

    @property
    def verdict(self) -> str:
        """The audit in one line."""
        passed, failed = self.audit.count(Verdict.PASS), len(self.audit.failed)
        skipped = self.audit.count(Verdict.NOT_APPLICABLE)
        return f"{passed} rules pass, {failed} fail, {skipped} not applicable"

    @property
    def sections(self) -> tuple[tuple[str, Document], ...]:
        """Title and text of what is text: status, CR3, trace."""
        cr3 = self.cr3
        checked = Document(((plain(cr3),),)) if isinstance(cr3, str) else cr3_view.text(cr3)
        out = [("Status", status_view.text(self.status)), ("CR3", checked)]
        if self.trace is not None:
            out.append(("Trace of early boot", trace_view.text(self.trace)))
        return tuple(out)


def text(report: Report) -> str:
    """The report as text: every section under its title."""
    blocks = [
        f"{report.title}\n{report.kernel}".rstrip(),
        _titled("Address space", "\n".join(_map(report.rows))),
        _titled("Audit", str(audit_view.text(report.audit))),
        *(_titled(title, str(document)) for title, document in report.sections),
    ]
    return "\n\n".join(blocks) + "\n"


def _titled(title: str, body: str) -> str:
    return f"{title}\n{'-' * len(title)}\n{body}"


def _map(rows: tuple[Row, ...]) -> list[str]:
    """A line a region, and below it what is not encrypted in it."""
    lines = []
    for row in rows:
        lines.append(svg.summary(row))
        lines += [
            f"  {svg.describe(piece)}"
            for piece in row.pieces
            if piece.state in (State.OPEN, State.FAULT)
        ]
    return lines

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand
from gdb_sme.commands.progress import Progress
from gdb_sme.errors import SymbolError, TargetError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.linux.cr3check import Cr3Report
    from gdb_sme.linux.trace import Timeline
    from gdb_sme.render.report import Report as Made

_ENDINGS = (".html", ".svg", ".txt")


class Report(SmeCommand):
    """Write a report of this stop to a file: FILE.html, FILE.svg or FILE.txt.

    The address space as a map, coloured by encryption and permission; the audit, CR3, the status,
    and the trace if there is one. The HTML page is one file that loads nothing, and can be zoomed.
    The SVG is the map alone.

    Example:
      (gdb) sme report /tmp/sme.html
      wrote /tmp/sme.html: 24 rules pass, 0 fail, 3 not applicable
    """

    name = "report"
    complete_with = gdb.COMPLETE_FILENAME

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument("file", metavar="FILE", nargs="+", help="Its ending decides.")

    def run(self, args: Namespace) -> None:
        """Answer."""
        from pathlib import Path

        from gdb_sme.render.document import Document, plain

        path = Path(" ".join(args.file).strip("\"'")).expanduser()
        if path.suffix not in _ENDINGS:
            raise UsageError(f"{path}: the ending must be one of {', '.join(_ENDINGS)}")
        made = collect()
        try:
            path.write_text(_rendered(made, path.suffix), encoding="utf-8")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot write {path}: {reason}") from error
        self.show(
            args,
            made,
            lambda report: Document(((plain(f"wrote {path}: {report.verdict}"),),)),
            lambda report: {"file": str(path), "passed": not report.audit.failed},
        )


def collect() -> Made:
    """Everything that a report holds, at this stop."""
    from gdb_sme.linux.addressmap import rows
    from gdb_sme.linux.audit import audit
    from gdb_sme.linux.cr3check import check_cr3
    from gdb_sme.linux.snapshot import banner
    from gdb_sme.linux.status import status
    from gdb_sme.render.report import Report as Made
    from gdb_sme.target.session import SESSIONS

    session = SESSIONS.current()
    kernel = session.kernel
    with Progress("sme report: at") as progress:
        result, view = audit(kernel, session.cpu, progress=progress)
    checked: Cr3Report | str
    try:
        checked = check_cr3(kernel)
    except SymbolError as error:  # of a kernel without symbols the rest can still be shown
        checked = str(error)
    return Made(
        kernel=banner(kernel),
        status=status(kernel, session.target.title, session.symbols.file),
        cr3=checked,
        audit=result,
        rows=rows(view, result),
        trace=_trace(),
    )


def _trace() -> Timeline | None:
    """The timeline of the session's trace, None without one."""
    from gdb_sme.commands.trace import TRACES

    try:
        return TRACES.current().timeline
    except TargetError:
        return None


def _rendered(made: Made, ending: str) -> str:
    from gdb_sme.render import html, report, svg

    if ending == ".html":
        return html.page(made)
    if ending == ".svg":
        return svg.document(made.rows, made.title, made.kernel or made.audit.root)
    return report.text(made)

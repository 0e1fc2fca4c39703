# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand, colour_wanted
from gdb_sme.errors import CheckFailed, TargetError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.linux.trace import Event
    from gdb_sme.target.kgdbtracer import KgdbTracer
    from gdb_sme.target.tracer import Tracer


class Trace(SmeCommand):
    """Record early boot: sme_me_mask, early_pmd_flags, CR3, early page faults, table fix-ups.

    `sme trace start` at reset, then continue: the session is not stopped, events are shown as they
    happen. `sme trace show` prints the timeline and the verdicts of the patch's review, `sme trace
    check` makes an error of a hazard, for scripts, and `sme trace stop` takes the breakpoints back.

    Over kgdb it begins where the machine stands, in setup_arch() at the earliest (kgdboc_earlycon),
    sets int3 alone, compares at each stop, and says at the start what it cannot see there.

    Example:
      (gdb) sme emulate sme
      (gdb) sme trace start --until start_kernel
      (gdb) hbreak start_kernel
      (gdb) continue
      (gdb) sme trace check
    """

    name = "trace"

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument(
            "--until", metavar="LOCATION", help="With start: end there; otherwise at rest_init."
        )
        parser.add_argument(
            "--quiet", action="store_true", help="With start: show no events as they happen."
        )
        parser.add_argument(
            "action", choices=("start", "show", "check", "stop"), help="What to do."
        )

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.render import trace as view

        if args.action != "start" and args.until:
            raise UsageError("--until goes with start: sme trace start --until start_kernel")
        if args.action == "start":
            TRACES.start(args.until, args.quiet)
            return
        tracer = TRACES.current()
        thread = gdb.selected_thread()
        if thread is not None and thread.is_stopped():
            tracer.look()
        if args.action == "stop":
            tracer.end("stopped by hand; all breakpoints are removed")
            return
        timeline = tracer.timeline
        self.show(args, timeline, view.text, view.payload)
        failed = [each for each in timeline.verdicts if not each.passed]
        if args.action == "check" and failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise CheckFailed(f"{failed[0].text}{more}")


class Traces:
    """The trace of this gdb session, at most one; what it recorded stays until the next."""

    def __init__(self) -> None:
        self._tracer: Tracer | KgdbTracer | None = None

    def current(self) -> Tracer | KgdbTracer:
        """The trace.

        Raises:
            TargetError: there is none.
        """
        if self._tracer is None:
            raise TargetError("no trace; at reset, begin one with: sme trace start")
        return self._tracer

    def start(self, until: str | None, quiet: bool) -> None:
        """Begin a trace.

        Raises:
            UsageError: one is under way.
        """
        if self._tracer is not None and self._tracer.active:
            raise UsageError("a trace is under way; end it first: sme trace stop")
        from gdb_sme.target.session import SESSIONS

        session = SESSIONS.current()
        if self._tracer is None:
            gdb.events.new_objfile.connect(self._symbols_changed)
            gdb.events.memory_changed.connect(self._memory_changed)
            gdb.events.cont.connect(self._continued)
            gdb.events.stop.connect(self._stopped)
        report = _ignore if quiet else _live
        if session.target.virtual is not None:
            from gdb_sme.target.kgdbtracer import UNSEEN, KgdbTracer

            gdb.write("".join(f"{each}\n" for each in UNSEEN))
            self._tracer = KgdbTracer(session.target.virtual, session.kernel, until, report)
        else:
            from gdb_sme.target.tracer import Tracer

            stub = session.require_stub("the trace")
            self._tracer = Tracer(stub, session.kernel, until, report)

    def _symbols_changed(self, _event: object) -> None:
        if self._tracer is not None:
            self._tracer.symbols_changed()

    def _continued(self, _event: object) -> None:
        if self._tracer is not None:
            self._tracer.continued()

    def _stopped(self, event: gdb.StopEvent) -> None:
        if self._tracer is not None:
            self._tracer.stopped(event)

    def _memory_changed(self, _event: object) -> None:
        if self._tracer is not None:
            self._tracer.memory_changed()

    def disconnected(self, _event: object = None) -> None:
        """Keep what was recorded when the target is gone, and say what it still has."""
        if self._tracer is None:
            return
        left = self._tracer.left
        if left:
            gdb.write(f"warning: {left}\n", gdb.STDERR)
        more = f"; {left}" if left else ""
        self._tracer.end(f"ended: the connection to the target is gone{more}")


TRACES = Traces()


def _live(event: Event) -> None:
    from gdb_sme.render import terminal
    from gdb_sme.render import trace as view

    gdb.write(terminal.render(view.live(event), colour=colour_wanted()) + "\n")


def _ignore(_event: Event) -> None:
    return None

# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdb_sme.commands.base import Arguments, SmeCommand
from gdb_sme.commands.progress import Progress
from gdb_sme.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.linux.audit.model import Rule


class Audit(SmeCommand):
    """Check the whole address space: what must carry the C-bit does, what must not does not.

    Every rule has a name, a reason and a reference to the kernel's source. A rule that fails names
    its places: virtual and physical address, page size, and the entry that is wrong; then the
    command ends with an error, for scripts. What the kernel leaves unencrypted by design is known,
    by its own variables, and named in the verdict.

    Example:
      (gdb) sme audit
      pass  table-entries-encrypted  105 of 105 entries carry the C-bit
      FAIL  direct-map-encrypted     1 place
            0xffff888010000000-0xffff8880101fffff -> 0x10000000 (2 MiB pmd at 0x03a01400 ...
    """

    name = "audit"

    def arguments(self, parser: Arguments) -> None:
        """See `SmeCommand.arguments`."""
        super().arguments(parser)
        parser.add_argument(
            "--rules", action="store_true", help="Show the rules with their reasons and sources."
        )
        parser.add_argument("rule", metavar="RULE", nargs="*", help="Only these rules.")

    def run(self, args: Namespace) -> None:
        """Answer."""
        from gdb_sme.linux.audit import audit
        from gdb_sme.render import audit as view
        from gdb_sme.target.session import SESSIONS

        rules = chosen(args.rule)
        if args.rules:
            self.show(args, rules, view.explained, view.rules_payload)
            return
        session = SESSIONS.current()
        with Progress("sme audit: at") as progress:
            result, _ = audit(session.kernel, session.cpu, rules, progress)
        self.show(args, result, view.text, view.payload)
        if result.failed:
            names = ", ".join(each.rule.name for each in result.failed)
            many = "1 rule fails" if len(result.failed) == 1 else f"{len(result.failed)} rules fail"
            raise CheckFailed(f"{many}: {names}")

    def complete(self, text: str, word: str) -> list[str] | int:
        """Complete the names of rules too."""
        from gdb_sme.linux.audit import RULES

        last = text.rpartition(" ")[2]
        if last.startswith("-"):
            return super().complete(text, word)
        found = [rule.name for rule in RULES if rule.name.startswith(last)]
        return [each[len(last) - len(word) :] for each in found] or gdb.COMPLETE_NONE


def chosen(names: list[str]) -> tuple[Rule, ...]:
    """The rules of these names, all without one.

    Raises:
        UsageError: there is no such rule.
    """
    from gdb_sme.linux.audit import RULES

    known = {rule.name: rule for rule in RULES}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no rule {name!r}; see: sme audit --rules")
    return tuple(known[name] for name in names) or RULES

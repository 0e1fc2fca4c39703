# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command shares: arguments from one declaration, errors in one place, output.

To load the extension is to register its commands, and nothing more: what a command needs to answer
is imported when it is first given.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gdb

from gdb_sme.errors import SmeError, TargetError, UsageError
from gdb_sme.target.connection import one_line

if TYPE_CHECKING:
    from argparse import Namespace

    from gdb_sme.render.document import Document


_HELP_WIDTH = 100


class Argument:
    """One argument as it was declared.

    Attributes:
        names: an option's names, or the one name of a positional argument.
        options: the rest of what argparse's add_argument takes.
    """

    def __init__(self, names: tuple[str, ...], options: dict[str, Any]) -> None:
        self.names = names
        self.options = options

    @property
    def is_option(self) -> bool:
        """Whether it is given by name."""
        return self.names[0].startswith("-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have, empty when there is no list of them."""
        return tuple(map(str, self.options.get("choices") or ()))

    @property
    def takes_value(self) -> bool:
        """Whether it is more than a switch."""
        return not str(self.options.get("action", "")).startswith("store_")

    @property
    def title(self) -> str:
        """How it stands in the help: ``--root ROOT``, ``ADDRESS``, ``sme|sev|off``."""
        value = "|".join(self.choices) or str(
            self.options.get("metavar") or self.names[0].lstrip("-").upper()
        )
        if not self.is_option:
            return value
        return f"{self.names[0]} {value}" if self.takes_value else self.names[0]

    @property
    def usage(self) -> str:
        """Its part of the usage line: what can be left out stands in brackets."""
        optional = self.is_option and not self.options.get("required")
        optional |= self.options.get("nargs") in ("?", "*")
        return f"[{self.title}]" if optional else self.title


class Arguments:
    """The arguments of a command, declared as for argparse, which is imported at the first use."""

    def __init__(self) -> None:
        self.declared: list[Argument] = []

    def add_argument(self, *names: str, **options: Any) -> None:
        """As argparse.ArgumentParser.add_argument."""
        self.declared.append(Argument(names, options))


class SmeCommand(gdb.Command):
    """Base of the commands.

    A subclass sets `name`, writes its help as its docstring, declares its arguments in
    `arguments`, and answers in `run`. A result that fails a check the person asked for is shown
    first; then `run`'s ``verdict`` raises.
    """

    name = ""
    complete_with = gdb.COMPLETE_NONE

    def __init__(self) -> None:
        self._arguments = Arguments()
        self.arguments(self._arguments)
        self.__doc__ = self._help()
        super().__init__(f"sme {self.name}", gdb.COMMAND_DATA)

    def _help(self) -> str:
        """gdb's help: the summary, the usage made from the declaration, and the rest."""
        text = "\n".join(
            line.removeprefix("    ") for line in (type(self).__doc__ or "").split("\n")
        )
        summary, _, rest = text.strip().partition("\n")
        declared = self._arguments.declared
        usage = [f"Usage: sme {self.name}"]
        for each in declared:
            if len(usage[-1]) + len(each.usage) >= _HELP_WIDTH:
                usage.append("      ")
            usage[-1] += f" {each.usage}"
        lines = [summary, *usage, ""]
        lines += [f"  {each.title}\n    {each.options['help']}" for each in declared]
        return "\n".join(lines) + "\n" + rest.rstrip()

    def arguments(self, parser: Arguments) -> None:
        """Declare the arguments; every command that shows something takes --json."""
        parser.add_argument("--json", action="store_true", help="One JSON document on one line.")

    def run(self, args: Namespace) -> None:
        """Answer; `show` writes the result."""
        raise NotImplementedError

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Called by gdb."""
        from gdb_sme.commands import parser

        del from_tty
        self.dont_repeat()
        command = f"sme {self.name}"
        with translated_errors(command):
            self.run(parser.parse(command, self._arguments, argument))

    def show(
        self,
        args: Namespace,
        result: Any,
        text: Callable[[Any], Document],
        payload: Callable[[Any], dict[str, object]],
    ) -> None:
        """Write a result as text or as JSON."""
        from gdb_sme.render import json, terminal

        if args.json:
            gdb.write(json.render(f"sme {self.name}", payload(result)) + "\n")
        else:
            gdb.write(terminal.render(text(result), colour=colour_wanted()) + "\n")

    def complete(self, text: str, word: str) -> list[str] | int:
        """Complete options, their values, and what the command itself takes."""
        words = text.split(" ")
        last = words[-1]
        if last.startswith("-"):
            options = [name for each in self._arguments.declared for name in each.names]
            found = [option for option in options if option.startswith(last)]
        else:
            taking = self._taking(words[-2] if len(words) > 1 else "")
            if taking is None:
                return gdb.COMPLETE_NONE
            if not taking.choices:
                return self.complete_with
            found = [choice for choice in taking.choices if choice.startswith(last)]
        # gdb breaks words at characters such as "-": give back from where it broke.
        return [option[len(last) - len(word) :] for option in found]

    def _taking(self, previous: str) -> Argument | None:
        """The argument whose value follows the word ``previous``, None when none does."""
        for each in self._arguments.declared:
            if previous in each.names and each.takes_value:
                return each
        return next((each for each in self._arguments.declared if not each.is_option), None)


class translated_errors:
    """The one bridge from errors for a person to gdb's: one clean line, no traceback."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SmeError):
            raise gdb.GdbError(f"{self._command}: {error}") from None
        if isinstance(error, gdb.error):
            text = one_line(error)
            if not gdb.selected_inferior().pid:
                text = f"the target went away ({text}); connect again"
            raise gdb.GdbError(f"{self._command}: {text}") from None


def evaluate(words: list[str] | str) -> int:
    """Value of a gdb expression as an unsigned 64-bit address.

    Raises:
        UsageError: it is no expression, or has no value here.
    """
    expression = words if isinstance(words, str) else " ".join(words)
    try:
        value = gdb.parse_and_eval(expression)
        return as_address(value)
    except (gdb.error, ValueError, OverflowError) as error:
        # A stripped vmlinux has symbols without types: there a table's name is its address.
        known = _untyped_address(expression, stripped="unknown type" in str(error))
        if known is not None:
            return known
        raise UsageError(
            f"{expression!r} is not an address ({one_line(error)}); give an expression such as "
            "0xffffffff81000000 or &init_top_pgt"
        ) from error


def _untyped_address(expression: str, stripped: bool) -> int | None:
    """Address of ``NAME``, ``&NAME`` or with ``+OFFSET`` in bytes, by symbols without types.

    Args:
        expression: what gdb could not evaluate.
        stripped: whether gdb has the symbol, without its type; else only symbols that gdb does not
            have are looked at.
    """
    from gdb_sme.linux.untyped import UntypedSymbols
    from gdb_sme.target.session import SESSIONS

    try:
        symbols = SESSIONS.current().symbols
    except TargetError:
        return None
    match = re.fullmatch(r"&?(\w+)(?:\s*\+\s*(0x[0-9a-f]+|\d+))?", expression.strip())
    if match is None or not (stripped or isinstance(symbols, UntypedSymbols)):
        return None
    address = symbols.address(match[1])
    return None if address is None else address + int(match[2] or "0", 0)


def as_address(value: gdb.Value) -> int:
    """A value of gdb's as an unsigned 64-bit address; functions and arrays are their address.

    Raises:
        UsageError: it is a floating-point number.
    """
    code = value.type.strip_typedefs().code
    if code == gdb.TYPE_CODE_FLT:
        raise UsageError(f"{value} is no whole number; give an address")
    located = code in (gdb.TYPE_CODE_FUNC, gdb.TYPE_CODE_ARRAY)
    number = value.address if located and value.address is not None else value
    # Without a file or target gdb takes itself to be on an i386, whose long has 32 bits.
    return int(number.cast(gdb.lookup_type("unsigned long long")))


def colour_wanted() -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR or `set style enabled off` says no."""
    return (
        not os.environ.get("NO_COLOR")
        and bool(gdb.parameter("style enabled"))
        and os.isatty(sys.__stdout__.fileno() if sys.__stdout__ else 1)
    )

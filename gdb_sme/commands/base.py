# SPDX-License-Identifier: GPL-2.0-or-later
"""What every command shares: arguments from one declaration, errors in one place, output."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import gdb

from gdb_sme.errors import SmeError, TargetError, UsageError
from gdb_sme.render import json as render_json
from gdb_sme.render import terminal
from gdb_sme.render.document import Document
from gdb_sme.target.connection import one_line


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving gdb."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: help {self.prog}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError(message or f"see: help {self.prog}")


class SmeCommand(gdb.Command):
    """Base of the commands.

    A subclass sets `name`, writes its help as its docstring, declares its arguments in
    `arguments`, and answers in `run`. A result that fails a check the person asked for is shown
    first; then `run`'s ``verdict`` raises.
    """

    name = ""
    complete_with = gdb.COMPLETE_NONE

    def __init__(self) -> None:
        self._parser = _Parser(prog=f"sme {self.name}", add_help=False, allow_abbrev=False)
        self.arguments(self._parser)
        self.__doc__ = self._help()
        super().__init__(f"sme {self.name}", gdb.COMMAND_DATA)

    def _help(self) -> str:
        """gdb's help: the summary, the usage made from the declaration, and the rest."""
        text = "\n".join(
            line.removeprefix("    ") for line in (type(self).__doc__ or "").split("\n")
        )
        summary, _, rest = text.strip().partition("\n")
        usage = " ".join(self._parser.format_usage().split()).replace("usage:", "Usage:")
        lines = [summary, usage]
        options = [action for action in self._parser._actions if action.help]
        if options:
            lines.append("")
        for action in options:
            name = action.option_strings[0] if action.option_strings else action.dest.upper()
            if action.option_strings and action.nargs != 0:
                choices = "|".join(map(str, action.choices)) if action.choices else action.metavar
                name += f" {choices}"
            lines.append(f"  {name}\n    {action.help}")
        return "\n".join(lines) + "\n" + rest.rstrip()

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments; every command that shows something takes --json."""
        parser.add_argument("--json", action="store_true", help="One JSON document on one line.")

    def run(self, args: argparse.Namespace) -> None:
        """Answer; `show` writes the result."""
        raise NotImplementedError

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Called by gdb."""
        del from_tty
        self.dont_repeat()
        with translated_errors(f"sme {self.name}"):
            self.run(self._parser.parse_args(split(argument)))

    def show(
        self,
        args: argparse.Namespace,
        result: Any,
        text: Callable[[Any], Document],
        payload: Callable[[Any], dict[str, object]],
    ) -> None:
        """Write a result as text or as JSON."""
        if args.json:
            gdb.write(render_json.render(f"sme {self.name}", payload(result)) + "\n")
        else:
            gdb.write(terminal.render(text(result), colour=colour_wanted()) + "\n")

    def complete(self, text: str, word: str) -> list[str] | int:
        """Complete options, their values, and what the command itself takes."""
        words = text.split(" ")
        last = words[-1]
        if last.startswith("-"):
            options = [o for action in self._parser._actions for o in action.option_strings]
            found = [option for option in options if option.startswith(last)]
        else:
            previous = words[-2] if len(words) > 1 else ""
            found = [choice for choice in self._choices(previous) if choice.startswith(last)]
            if not found:
                return self.complete_with
        # gdb breaks words at characters such as "-": give back from where it broke.
        return [option[len(last) - len(word) :] for option in found]

    def _choices(self, previous: str) -> list[str]:
        for action in self._parser._actions:
            if (previous in action.option_strings) or (
                not action.option_strings and not previous.startswith("--")
            ):
                return [str(choice) for choice in action.choices or ()]
        return []


class translated_errors:
    """The one bridge from errors for a person to gdb's: one clean line, no traceback."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SmeError):
            raise gdb.GdbError(f"{self._command}: {error}") from None
        if isinstance(error, gdb.error) and not gdb.selected_inferior().pid:
            gone = TargetError(f"the target went away ({one_line(error)}); connect again")
            raise gdb.GdbError(f"{self._command}: {gone}") from None


def split(argument: str) -> list[str]:
    """Words of a command line; quotes stay, since they belong to gdb's expressions."""
    try:
        return shlex.split(argument, posix=False)
    except ValueError as error:
        raise UsageError(f"{argument}: {str(error).lower()}") from error


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
        raise UsageError(
            f"{expression!r} is not an address ({one_line(error)}); give an expression such as "
            "0xffffffff81000000 or &init_top_pgt"
        ) from error


def as_address(value: gdb.Value) -> int:
    """A value of gdb's as an unsigned 64-bit address; functions and arrays are their address."""
    located = value.type.strip_typedefs().code in (gdb.TYPE_CODE_FUNC, gdb.TYPE_CODE_ARRAY)
    number = value.address if located and value.address is not None else value
    return int(number.cast(gdb.lookup_type("unsigned long")))


def colour_wanted() -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR or `set style enabled off` says no."""
    return (
        not os.environ.get("NO_COLOR")
        and bool(gdb.parameter("style enabled"))
        and os.isatty(sys.__stdout__.fileno() if sys.__stdout__ else 1)
    )

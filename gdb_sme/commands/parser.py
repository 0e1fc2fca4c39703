# SPDX-License-Identifier: GPL-2.0-or-later
"""The argparse behind the commands, apart from them: its import is most of a small program's."""

from __future__ import annotations

import argparse
import shlex
from functools import cache
from typing import TYPE_CHECKING, NoReturn

from gdb_sme.errors import UsageError

if TYPE_CHECKING:
    from gdb_sme.commands.base import Arguments


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving gdb."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: help {self.prog}")


def parse(prog: str, arguments: Arguments, text: str) -> argparse.Namespace:
    """The arguments in ``text``, what was typed behind the command ``prog``.

    Raises:
        UsageError: they are not as declared.
    """
    return _parser(prog, arguments).parse_args(split(text))


@cache
def _parser(prog: str, arguments: Arguments) -> _Parser:
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    for argument in arguments.declared:
        parser.add_argument(*argument.names, **argument.options)
    return parser


def split(text: str) -> list[str]:
    """Words of a command line; quotes stay, since they belong to gdb's expressions.

    Raises:
        UsageError: a quote is not closed.
    """
    try:
        return shlex.split(text, posix=False)
    except ValueError as error:
        raise UsageError(f"{text}: {str(error).lower()}; close the quotation") from error

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rule is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gdb_sme.linux.audit.view import View


class Verdict(Enum):
    """Outcome of a rule."""

    PASS = "pass"
    FAIL = "FAIL"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule is broken.

    Attributes:
        va: first virtual address; None for what is no mapping: a register, a variable.
        pa: physical address that it is mapped to, or of the variable; None where there is none.
        size: bytes concerned, 0 where there is no range.
        detail: what is wrong there, in words.
        page_size: of the pages, in bytes; 0 where there is no page.
        level: level of the entry that is wrong, empty where there is no entry.
        entry_pa: physical address of that entry, None likewise.
        raw: that entry, or the register's or variable's value; None when it is not known.
    """

    va: int | None
    pa: int | None
    size: int
    detail: str
    page_size: int = 0
    level: str = ""
    entry_pa: int | None = None
    raw: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule found.

    Attributes:
        verdict: pass, fail or not applicable.
        text: what was looked at, what is excepted, or why it is not applicable; in words.
        places: where it is broken; empty unless it fails.
    """

    verdict: Verdict
    text: str
    places: tuple[Place, ...] = ()


def not_applicable(why: str) -> Outcome:
    """The rule says nothing about this kernel at this stop."""
    return Outcome(Verdict.NOT_APPLICABLE, why)


def judged(text: str, places: Iterable[Place]) -> Outcome:
    """Pass with ``text`` when there is no place, fail with the places otherwise."""
    found = tuple(places)
    if not found:
        return Outcome(Verdict.PASS, text)
    many = "1 place" if len(found) == 1 else f"{len(found)} places"
    return Outcome(Verdict.FAIL, many, found)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the audit.

    Attributes:
        name: its name: lower-case words with hyphens.
        what: what must hold, one line.
        why: what goes wrong otherwise, one line.
        source: where the kernel (or the processor's manual) says so.
        check: the rule's code.
        encryption: whether it says nothing where no encryption is active.
    """

    name: str
    what: str
    why: str
    source: str
    check: Callable[[View], Outcome]
    encryption: bool = True

    def __call__(self, view: View) -> Outcome:
        """Judge the kernel that ``view`` shows."""
        if self.encryption and not view.kernel.enc.mask:
            return not_applicable("no memory encryption is active")
        return self.check(view)


def rule(
    name: str, *, what: str, why: str, source: str, encryption: bool = True
) -> Callable[[Callable[[View], Outcome]], Rule]:
    """Make a `Rule` of the function that follows; see there for the arguments."""

    def make(check: Callable[[View], Outcome]) -> Rule:
        return Rule(name, what, why, source, check, encryption)

    return make


@dataclass(frozen=True, slots=True)
class Result:
    """A rule and its outcome."""

    rule: Rule
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Audit:
    """The answer of `sme audit`.

    Attributes:
        scheme: title of the encryption scheme in force.
        c_bit: position of the encryption bit, None without one.
        root: the root that was audited, in words.
        stage: the boot stage, in words.
        results: one a rule, in the order of the registry.
    """

    scheme: str
    c_bit: int | None
    root: str
    stage: str
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        """The rules that fail."""
        return tuple(r for r in self.results if r.outcome.verdict is Verdict.FAIL)

    def count(self, verdict: Verdict) -> int:
        """How many rules have ``verdict``."""
        return sum(each.outcome.verdict is verdict for each in self.results)

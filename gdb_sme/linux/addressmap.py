# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space as a picture needs it: a row a region, in it the pieces that look alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

from gdb_sme.core.ranges import MappedRange
from gdb_sme.linux.audit.model import Audit
from gdb_sme.linux.audit.view import View
from gdb_sme.linux.layout import Region

#: Pieces of a row above which they are drawn coarser: a screen is some thousand pixels wide.
MOST = 600


class State(Enum):
    """How a piece is encrypted."""

    ENCRYPTED = "encrypted"
    OPEN = "not encrypted, by design"
    FAULT = "fault"
    PLAIN = "not encrypted"


@dataclass(frozen=True, slots=True)
class Piece:
    """Memory that is drawn as one.

    Attributes:
        va: first virtual address.
        end: first virtual address behind it.
        mapped: bytes in it that are mapped.
        state: how it is encrypted.
        rights: ``"rw-"``; the most that any page of it has.
        user: whether user mode can reach some of it.
        note: what it is, or what is wrong with it, in words; may be empty.
    """

    va: int
    end: int
    mapped: int
    state: State
    rights: str
    user: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A region and its pieces by virtual address.

    Attributes:
        region: the region.
        pieces: what is drawn.
        coarse: whether pieces were put together that have gaps or differ in their rights.
    """

    region: Region
    pieces: tuple[Piece, ...]
    coarse: bool = False

    def mapped(self, *states: State) -> int:
        """Bytes that are mapped in these states."""
        return sum(each.mapped for each in self.pieces if each.state in states)


def rows(view: View, audit: Audit, most: int = MOST) -> tuple[Row, ...]:
    """The map of what ``view`` saw, with the faults of ``audit``; only regions with something."""
    faults = sorted(
        (place.va, place.va + place.size, f"{result.rule.name}: {place.detail}")
        for result in audit.failed
        for place in result.outcome.places
        if place.va is not None
    )
    pieces = [part for found in view.scan.ranges for part in _pieces(view, found, faults)]
    found = []
    for region in _regions(view, pieces):
        here = [each for each in pieces if region.start <= each.va < region.end]
        if here:
            found.append(_row(region, here, most))
    return tuple(found)


def _regions(view: View, pieces: Sequence[Piece]) -> tuple[Region, ...]:
    """The regions of the layout, and what lies between them as far as something is mapped there."""
    known = sorted(view.regions.values(), key=lambda region: region.start)
    out, last = [], 0
    for region in (*known, Region("", 1 << 64, 1 << 64)):
        if any(last <= each.va < region.start for each in pieces):
            out.append(Region("elsewhere", last, region.start))
        if region.name:
            out.append(region)
        last = max(last, region.end)
    return tuple(out)


def _pieces(
    view: View, found: MappedRange, faults: Sequence[tuple[int, int, str]]
) -> Iterator[Piece]:
    """``found`` cut where a region or a fault begins or ends."""
    edges = {found.va, found.end}
    edges |= {edge for region in view.regions.values() for edge in (region.start, region.end)}
    edges |= {edge for start, end, _ in faults for edge in (start, end)}
    inside = sorted(edge for edge in edges if found.va <= edge <= found.end)
    rights = found.attributes.permissions
    for start, end in pairwise(inside):
        fault = next((why for low, high, why in faults if low <= start < high), None)
        state, note = (State.FAULT, fault) if fault else _state(view, found, start)
        yield Piece(start, end, end - start, state, str(rights), rights.user, note)


def _state(view: View, found: MappedRange, va: int) -> tuple[State, str]:
    if not view.kernel.enc.mask:
        return State.PLAIN, ""
    if found.attributes.encrypted:
        return State.ENCRYPTED, ""
    pa = found.pa_of(va)
    note = next((each.reason for each in view.exempt if each.covers(va, pa)), "device memory")
    return State.OPEN, note.removesuffix(": by design")


def _row(region: Region, pieces: Sequence[Piece], most: int) -> Row:
    exact = tuple(_merge(pieces, _touching))
    if len(exact) <= most:
        return Row(region, exact)
    coarse = tuple(_merge(exact, _alike))
    return Row(region, coarse if len(coarse) <= most else tuple(_merge(coarse, _same_state)), True)


def _merge(pieces: Iterable[Piece], alike: Callable[[Piece, Piece], bool]) -> Iterator[Piece]:
    """``pieces`` with neighbours that are ``alike`` put together."""
    last: Piece | None = None
    for each in pieces:
        if last is None:
            last = each
        elif alike(last, each):
            last = replace(
                last,
                end=each.end,
                mapped=last.mapped + each.mapped,
                rights=_most(last.rights, each.rights),
                user=last.user or each.user,
                note=last.note or each.note,
            )
        else:
            yield last
            last = each
    if last is not None:
        yield last


def _alike(one: Piece, other: Piece) -> bool:
    return (one.state, one.rights, one.note) == (other.state, other.rights, other.note)


def _touching(one: Piece, other: Piece) -> bool:
    return one.end == other.va and _alike(one, other)


def _same_state(one: Piece, other: Piece) -> bool:
    return one.state is other.state


def _most(one: str, other: str) -> str:
    """The rights that either has."""
    return "".join(a if a != "-" else b for a, b in zip(one, other, strict=True))

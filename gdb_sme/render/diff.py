# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme diff` and `sme snapshot`: a change a line, what it was and what it is."""

from __future__ import annotations

from gdb_sme.core.address import hex_pa, hex_va, size_text
from gdb_sme.core.ranges import MappedRange
from gdb_sme.core.scan import TableUse
from gdb_sme.linux.diff import Change, Diff, Kind, TableChange
from gdb_sme.linux.snapshot import Snapshot
from gdb_sme.linux.translate import LINUX_PAT
from gdb_sme.render.document import (
    Document,
    Line,
    comment,
    good,
    keyword,
    number,
    plain,
    spaced,
    table,
)
from gdb_sme.render.json import hexadecimal

_HEAD = ("virtual", "to", "size", "to physical", "change", "region")


def text(diff: Diff) -> Document:
    """The changes by address, the tables below, the sums last."""
    rows: list[list[Line]] = []
    if diff.changes:
        rows.append([(comment(title),) for title in _HEAD])
        rows += [_row(diff, each) for each in diff.changes]
    lines = list(table(rows, right=frozenset({2})))
    lines += [_table(each) for each in diff.tables if each.c_bit]
    lines += [(comment(_title("A", diff.before)),), (comment(_title("B", diff.after)),)]
    return Document((*lines, _sums(diff)))


def _title(letter: str, snapshot: Snapshot) -> str:
    kernel = f"{snapshot.kernel}, " if snapshot.kernel else ""
    return f"{letter} {snapshot.name}: {kernel}{snapshot.scheme}, {snapshot.root}; {snapshot.stage}"


def _row(diff: Diff, change: Change) -> list[Line]:
    here = change.after or change.before
    assert here is not None
    region = (diff.after if change.after else diff.before).region(change.va)
    return [
        (number(hex_va(change.va)),),
        (number(hex_va(change.end - 1)),),
        (plain(size_text(change.size)),),
        (number(hex_pa(here.pa)),),
        spaced((plain(each) for each in _words(change)), ", "),
        (comment(region or ""),) if region else (),
    ]


def _words(change: Change) -> list[str]:
    old, new = change.before, change.after
    if old is None or new is None:
        one = new or old
        assert one is not None
        return [f"{change.kinds[0].value}: {_how(one)}"]
    pairs = {
        Kind.C_BIT: ("C" if old.attributes.encrypted else "-", _c(new)),
        Kind.PERMISSIONS: (_rights(old), _rights(new)),
        Kind.MOVED: (hex_pa(old.pa), hex_pa(new.pa)),
        Kind.MEMORY_TYPE: (
            LINUX_PAT[old.attributes.cache_index],
            LINUX_PAT[new.attributes.cache_index],
        ),
        Kind.PAGE_SIZE: (size_text(old.attributes.page_size), size_text(new.attributes.page_size)),
        Kind.GLOBAL: (_global(old), _global(new)),
    }
    return [f"{kind.value} {pairs[kind][0]} -> {pairs[kind][1]}" for kind in change.kinds]


def _c(found: MappedRange) -> str:
    return "C" if found.attributes.encrypted else "-"


def _global(found: MappedRange) -> str:
    return "set" if found.attributes.global_ else "clear"


def _rights(found: MappedRange) -> str:
    rights = found.attributes.permissions
    return f"{rights} {'user' if rights.user else 'kernel'}"


def _how(found: MappedRange) -> str:
    return f"{_c(found)} {_rights(found)} {size_text(found.attributes.page_size)}"


def _table(change: TableChange) -> Line:
    assert change.before is not None
    assert change.after is not None
    flip = "C -> -" if change.before.encrypted else "- -> C"
    return (
        number(hex_va(change.va)),
        plain(f"  the {change.level} table: c-bit {flip}, entry at "),
        number(hex_pa(change.after.entry_pa or 0)),
    )


def _sums(diff: Diff) -> Line:
    """The bytes that changed in each way; encrypted and decrypted told apart."""
    flipped = [each for each in diff.changes if Kind.C_BIT in each.kinds]
    sums = [
        ("encrypted", sum(each.size for each in flipped if _now_encrypted(each))),
        ("decrypted", sum(each.size for each in flipped if not _now_encrypted(each))),
        *((kind.value, diff.bytes_of(kind)) for kind in Kind if kind is not Kind.C_BIT),
    ]
    words = [f"{name} {size_text(size)}" for name, size in sums if size]
    came = sum(each.before is None for each in diff.tables)
    went = sum(each.after is None for each in diff.tables)
    if came or went:
        words.append(f"table pages +{came} -{went}")
    return (good("no difference"),) if not words else (plain("; ".join(words)),)


def _now_encrypted(change: Change) -> bool:
    return change.after is not None and change.after.attributes.encrypted


def payload(diff: Diff) -> dict[str, object]:
    """Members: before, after (each a snapshot's head), changes, tables.

    A change has kinds, va, end (not included), size, before, after: null or pa, page_size,
    encrypted, write, user, execute, global, memory_type.
    """
    return {
        "before": head_payload(diff.before),
        "after": head_payload(diff.after),
        "changes": [_change(diff, each) for each in diff.changes],
        "tables": [_table_payload(each) for each in diff.tables],
    }


def _change(diff: Diff, change: Change) -> dict[str, object]:
    return {
        "kinds": [kind.value for kind in change.kinds],
        "va": hex_va(change.va),
        "end": hexadecimal(change.end),
        "size": change.size,
        "region": (diff.after if change.after else diff.before).region(change.va),
        "before": _side(change.before),
        "after": _side(change.after),
    }


def _side(found: MappedRange | None) -> dict[str, object] | None:
    if found is None:
        return None
    how = found.attributes
    return {
        "pa": hexadecimal(found.pa),
        "page_size": how.page_size,
        "encrypted": how.encrypted,
        "write": how.permissions.write,
        "user": how.permissions.user,
        "execute": how.permissions.execute,
        "global": how.global_,
        "memory_type": LINUX_PAT[how.cache_index],
        "repeated": how.repeated,
    }


def _table_payload(change: TableChange) -> dict[str, object]:
    return {
        "va": hex_va(change.va),
        "level": change.level,
        "before": _use(change.before),
        "after": _use(change.after),
    }


def _use(use: TableUse | None) -> dict[str, object] | None:
    if use is None:
        return None
    return {
        "pa": hexadecimal(use.pa),
        "entry_pa": hexadecimal(use.entry_pa),
        "raw": hex_va(use.raw),
        "encrypted": use.encrypted,
    }


def head(snapshots: tuple[Snapshot, ...]) -> Document:
    """Snapshots, one a line: `sme snapshot`."""
    if not snapshots:
        return Document(((comment("no snapshots; take one with: sme snapshot NAME"),),))
    rows: list[list[Line]] = []
    for each in snapshots:
        mapped = sum(r.attributes.encrypted for r in each.ranges)
        rows.append(
            [
                (keyword(each.name),),
                (plain(f"{len(each.ranges)} ranges, {mapped} encrypted"),),
                (plain(f"{len(each.tables)} tables"),),
                (plain(each.scheme),),
                (plain(each.root),),
                (comment(each.stage),),
                (comment(each.kernel),) if each.kernel else (),
            ]
        )
    return Document(table(rows))


def heads_payload(snapshots: tuple[Snapshot, ...]) -> dict[str, object]:
    """Member snapshots: the head of each."""
    return {"snapshots": [head_payload(each) for each in snapshots]}


def head_payload(snapshot: Snapshot) -> dict[str, object]:
    """Members: name, kernel, scheme, mask, stage, root, ranges and tables (how many)."""
    return {
        "name": snapshot.name,
        "kernel": snapshot.kernel or None,
        "scheme": snapshot.scheme,
        "mask": hex_va(snapshot.mask),
        "stage": snapshot.stage,
        "root": snapshot.root,
        "ranges": len(snapshot.ranges),
        "tables": len(snapshot.tables),
    }

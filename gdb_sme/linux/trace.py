# SPDX-License-Identifier: GPL-2.0-or-later
"""The timeline of an early boot, and the verdicts on it: the answer of `sme trace`.

The questions are those of the 2016 review of "x86: Provide general kernel support for memory
encryption": is sme_me_mask known when early_pmd_flags is built, is early_pmd_flags updated before
the first early page fault, does every user of __sme_pa carry the mask? Pure: events in, verdicts
out; ``gdb_sme.target.tracer`` records the events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeGuard

from gdb_sme.core.address import U64
from gdb_sme.linux.tables import Kind

#: Variables whose every write is an event, where the kernel has them.
WATCHED = ("sme_me_mask", "early_pmd_flags", "physical_mask", "sev_status", "cc_mask")
#: The same in older kernels: sev_enabled before 5.10; sme_me_mask said it all before cc_mask, 5.18.
OLD_NAMES = ("sev_enabled",)

#: Callers of __early_make_pgtable that map without the C-bit on purpose, and take it back: the boot
#: loader left boot_params and the command line unencrypted (arch/x86/mm/mem_encrypt_amd.c, 6.1).
BOOTDATA = ("sme_map_bootdata", "sme_unmap_bootdata", "__sme_early_map_unmap_mem")


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in which state an event happened.

    Attributes:
        pc: RIP.
        function: the function and the distance from its start, ``"sme_enable+137"``.
        source: source file and line, None when not known.
        cpu: the CPU's number.
        cr3: CR3 in force, raw; None where the target has none (kgdb).
        table: the kernel's name of the table in CR3, None when it has none; without CR3 that of the
            table that the kernel's variables name.
        stage: the boot stage, in words.
        mask: sme_me_mask at that time.
    """

    pc: int
    function: str
    source: str | None
    cpu: int
    cr3: int | None
    table: str | None
    stage: str
    mask: int


@dataclass(frozen=True, slots=True)
class Event:
    """Base of the events: a number, counted from 1, and the place."""

    number: int
    place: Place


def between(since: int, event: Event) -> str:
    """When something happened that was noticed with ``event``, and not yet at number ``since``."""
    return f"between #{since} and #{event.number}" if since else f"before #{event.number}"


@dataclass(frozen=True, slots=True)
class Write(Event):
    """A watched variable changed from ``old`` to ``new``.

    Attributes:
        noticed: the write itself was not seen: the place is where its result was noticed.
        since: then, the number of the last event at which it had the old value still; 0 for none.
    """

    name: str
    old: int
    new: int
    noticed: bool = False
    since: int = 0

    @property
    def when(self) -> str:
        """Where it happened, as far as that is known, in words."""
        return f"at {self.place.function}" if not self.noticed else between(self.since, self)


@dataclass(frozen=True, slots=True)
class Begin(Event):
    """What a trace finds that begins with the boot under way, and sees no writes.

    Attributes:
        values: the watched variables that the kernel has.
        protection_map: its entries, none where it is not to be had.
    """

    values: tuple[tuple[str, int], ...]
    protection_map: tuple[int, ...]

    @property
    def unencrypted(self) -> tuple[int, ...]:
        """Indexes of the entries of protection_map that lack the mask."""
        mask = self.place.mask
        return tuple(n for n, entry in enumerate(self.protection_map) if not entry & mask)


@dataclass(frozen=True, slots=True)
class Cr3Load(Event):
    """CR3 is loaded with ``value``.

    Attributes:
        value: the new CR3.
        target: name of the table, None when it is none that is known.
        kind: what the table is for, None likewise.
    """

    value: int
    target: str | None
    kind: Kind | None

    @property
    def by_design(self) -> bool:
        """Whether this table is loaded without the C-bit on purpose."""
        return self.kind in (Kind.WORKAREA, Kind.TRAMPOLINE, Kind.IDENTITY)

    @property
    def right(self) -> bool:
        """Whether the C-bit is as it must be."""
        return self.by_design or (self.value & self.place.mask) == self.place.mask


@dataclass(frozen=True, slots=True)
class EarlyMapping(Event):
    """early_make_pgtable (or __early_make_pgtable) was asked to map an address.

    Attributes:
        address: the address asked for.
        entries: level name and raw value of what the tables hold for it afterwards.
        flags: early_pmd_flags at that time.
        mask: sme_me_mask at that time.
        caller: function that asked.
        refused: whether it refused.
        physical: ``address`` less the start of the direct map: a physical address.
    """

    address: int
    entries: tuple[tuple[str, int], ...]
    flags: int
    mask: int
    caller: str
    refused: bool
    physical: int

    @property
    def bootdata(self) -> bool:
        """Whether the caller is one of those that map unencrypted on purpose."""
        return self.caller in BOOTDATA

    @property
    def pmd(self) -> int | None:
        """The pmd entry, None when there is none (refused)."""
        return next((raw for level, raw in self.entries if level == "pmd"), None)

    @property
    def unencrypted(self) -> tuple[tuple[str, int], ...]:
        """The present entries that lack the mask."""
        return tuple((at, raw) for at, raw in self.entries if raw & 1 and not raw & self.mask)


@dataclass(frozen=True, slots=True)
class FixUp(Event):
    """An early table as it is when the kernel first loads it, and as it was at the entry.

    Attributes:
        table: the table's name.
        entries: index, value before and value after of each entry that is present or changed.
        by_design: indexes of entries that lack the mask on purpose (.bss..decrypted).
    """

    table: str
    entries: tuple[tuple[int, int, int], ...]
    by_design: tuple[int, ...] = ()

    @property
    def changed(self) -> int:
        """How many entries were changed."""
        return sum(before != after for _, before, after in self.entries)

    @property
    def present(self) -> tuple[tuple[int, int, int], ...]:
        """The entries that are present now."""
        return tuple(entry for entry in self.entries if entry[2] & 1)

    @property
    def unencrypted(self) -> tuple[tuple[int, int, int], ...]:
        """The present entries that lack the mask and should not."""
        return tuple(
            entry
            for entry in self.present
            if not entry[2] & self.place.mask and entry[0] not in self.by_design
        )


@dataclass(frozen=True, slots=True)
class TableChange(FixUp):
    """What a table holds when it is first looked at, or what changed in it since the look before.

    Attributes:
        since: number of the last event at which it was as before; 0 at the first look, which has
            the present entries, ``before`` as ``after``.
    """

    since: int = 0


@dataclass(frozen=True, slots=True)
class EarlyException(Event):
    """The kernel's early handler got an exception that is no page fault it could serve.

    Attributes:
        vector: the exception.
        where: function that raised it.
        register: the register that holds an address with the mask in it, empty when none does.
        address: its value, None likewise.
        physical: ``address`` less the start of the direct map, None likewise.
    """

    vector: int
    where: str
    register: str = ""
    address: int | None = None
    physical: int | None = None


def through_va(value: int, page_offset_base: int, mask: int, top: int) -> bool:
    """Whether ``value`` is ``__va`` of an address in RAM (below ``top``) with the mask still in it.

    With a C-bit of 48 and above such an address is not canonical, and the access raises #GP, which
    tells no address: it is looked for in the registers.
    """
    physical = (value - page_offset_base) & U64
    return bool(mask and physical & mask and physical & ~mask < top)


@dataclass(frozen=True, slots=True)
class Moment(Event):
    """A moment of the boot: a function is entered or left, something takes over."""

    name: str
    detail: str = ""


class Outcome(Enum):
    """Outcome of a verdict."""

    OK = "ok"
    HAZARD = "HAZARD"
    FAIL = "FAIL"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict with its evidence.

    Attributes:
        rule: its name, for scripts.
        outcome: its outcome; OPEN when the trace did not see enough to tell.
        text: the verdict in words.
        evidence: numbers of the events that show it.
    """

    rule: str
    outcome: Outcome
    text: str
    evidence: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.outcome in (Outcome.OK, Outcome.OPEN)


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a trace recorded.

    Attributes:
        events: in their order.
        complete: whether it began at the kernel's entry.
        state: what the trace does now, or why it ended.
        notes: what could not be watched, and why.
        rules: those that can be asked of what was seen; None for `RULES`, all of them.
    """

    events: tuple[Event, ...]
    complete: bool
    state: str
    notes: tuple[str, ...] = ()
    rules: tuple[Rule, ...] | None = None

    @property
    def mask(self) -> int:
        """The last value of sme_me_mask."""
        return self.events[-1].place.mask if self.events else 0

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts of all rules that have something to say."""
        rules = RULES if self.rules is None else self.rules
        return tuple(verdict for rule in rules for verdict in rule(self))


#: Reads a timeline, and gives its verdicts.
Rule = Callable[[Timeline], Iterator[Verdict]]


def mask_kept(line: Timeline) -> Iterator[Verdict]:
    """Did sme_me_mask keep the value that it was given?"""
    for event in line.events:
        if isinstance(event, Write) and event.name == "sme_me_mask" and event.old:
            yield Verdict(
                "sme-me-mask",
                Outcome.FAIL,
                f"sme_me_mask changed after it was set: {event.old:#x} -> {event.new:#x} "
                f"{event.when}",
                (event.number,),
            )


def flags_before_first_fault(line: Timeline) -> Iterator[Verdict]:
    """Is early_pmd_flags updated before the first early page fault?"""
    rule = "early-pmd-flags"
    faults = [e for e in line.events if isinstance(e, EarlyMapping) and not e.bootdata]
    bad = [e for e in faults if e.pmd and e.mask and not e.pmd & e.mask]
    for fault in bad:
        yield Verdict(
            rule,
            Outcome.HAZARD,
            f"HAZARD: fault at {fault.address:#x} mapped without the C-bit "
            f"(pmd {fault.pmd:#x}), mask already set, {_why_unencrypted(line, fault)}",
            (fault.number,),
        )
    lost = [
        e for e in line.events if _is_flags(e) and e.old & e.place.mask and not e.new & e.place.mask
    ]
    for write in lost:
        yield Verdict(
            rule,
            Outcome.HAZARD,
            f"HAZARD: early_pmd_flags lost the mask: {write.old:#x} -> {write.new:#x} {write.when}",
            (write.number,),
        )
    if bad or lost or not line.mask:
        return
    received = next((e for e in line.events if _is_flags(e) and e.new & line.mask), None)
    after = _left_sme_early_init(line)
    if received is None and after is not None and line.complete:
        yield Verdict(
            rule,
            Outcome.HAZARD,
            "HAZARD: early_pmd_flags did not receive the mask in sme_early_init: "
            "every early fault will map without the C-bit",
            (after.number,),
        )
    elif received is None:
        yield Verdict(rule, Outcome.OPEN, "early_pmd_flags has not received the mask yet")
    elif faults:
        yield Verdict(
            rule,
            Outcome.OK,
            "early_pmd_flags received the mask before the first early fault "
            f"({received.number} before {faults[0].number})",
            (received.number, faults[0].number),
        )
    else:
        yield Verdict(
            rule,
            Outcome.OK,
            f"early_pmd_flags received the mask ({received.number}); no early fault yet",
            (received.number,),
        )


def _is_flags(event: Event) -> TypeGuard[Write]:
    return isinstance(event, Write) and event.name == "early_pmd_flags"


def _why_unencrypted(line: Timeline, fault: EarlyMapping) -> str:
    """What early_pmd_flags has to do with a fault that was mapped without the C-bit."""
    if fault.flags & fault.mask:
        return "although early_pmd_flags has it"
    before = [e for e in line.events if e.number < fault.number]
    if any(_is_flags(e) and e.new & fault.mask for e in before):
        return "early_pmd_flags lost it again"
    left = _left_sme_early_init(line)
    if left is not None and left.number < fault.number and line.complete:
        return "early_pmd_flags never received it"
    return "early_pmd_flags not yet"


def _left_sme_early_init(line: Timeline) -> Moment | None:
    return next(
        (e for e in line.events if isinstance(e, Moment) and e.name == "sme_early_init returns"),
        None,
    )


def cr3_right(line: Timeline) -> Iterator[Verdict]:
    """Does CR3 carry the mask at every load of the kernel's own tables?"""
    loads = [e for e in line.events if isinstance(e, Cr3Load)]
    wrong = [e for e in loads if not e.right]
    for load in wrong:
        yield Verdict(
            "cr3",
            Outcome.FAIL,
            f"CR3 loads {load.target or 'an unknown table'} without the C-bit: "
            f"{load.value:#x} in {load.place.function}, expected {load.value | load.place.mask:#x}",
            (load.number,),
        )
    lost = _cr3_lost(line)
    yield from lost
    own = [e for e in loads if not e.by_design]
    if own and not wrong and not lost and line.mask:
        yield Verdict(
            "cr3",
            Outcome.OK,
            f"CR3 carried the C-bit at every load from {own[0].number} on",
            tuple(e.number for e in own),
        )


def _cr3_lost(line: Timeline) -> list[Verdict]:
    """CR3 without the mask between loads: somebody else wrote it."""
    own: set[int] = set()
    for event in line.events:
        place = event.place
        if place.cr3 is None:
            continue
        if place.cpu in own and place.mask and not place.cr3 & place.mask:
            return [
                Verdict(
                    "cr3",
                    Outcome.FAIL,
                    f"CR3 lost its C-bit: {place.cr3:#x} at {place.function}, without a load that "
                    "the kernel makes",
                    (event.number,),
                )
            ]
        if isinstance(event, Cr3Load):
            own.discard(place.cpu)
            if not event.by_design and event.right:
                own.add(place.cpu)
    return []


def early_tables(line: Timeline) -> Iterator[Verdict]:
    """Is there an early table entry without the mask?"""
    rule = "early-tables"
    failed = False
    for event in line.events:
        if isinstance(event, FixUp) and event.place.mask:
            for index, before, after in event.unencrypted:
                failed = True
                yield Verdict(
                    rule,
                    Outcome.FAIL,
                    f"{event.table}[{index}] = {after:#x} {_how(event, before)}",
                    (event.number,),
                )
        elif isinstance(event, EarlyMapping) and event.mask and not event.bootdata:
            for level, raw in event.unencrypted:
                if level != "pmd":  # the pmd is early-pmd-flags' own matter
                    failed = True
                    yield Verdict(
                        rule,
                        Outcome.FAIL,
                        f"early_make_pgtable wrote a {level} entry without the mask: {raw:#x} "
                        f"for {event.address:#x} (_KERNPG_TABLE without _PAGE_ENC?)",
                        (event.number,),
                    )
    maps = [e for e in line.events if isinstance(e, EarlyMapping) and e.bootdata and e.pmd]
    left = [m for m in maps if not _unmapped_again(line, m)]
    for mapping in left if any(_is_return_of_copy(e) for e in line.events) else ():
        failed = True
        yield Verdict(
            rule,
            Outcome.FAIL,
            f"{mapping.caller} left {mapping.address:#x} mapped without the C-bit",
            (mapping.number,),
        )
    seen = any(isinstance(e, FixUp | EarlyMapping) for e in line.events)
    if line.mask and seen and not failed:
        but = f" but the {len(maps)} of sme_map_bootdata, unmapped again" if maps else ""
        yield Verdict(
            rule,
            Outcome.OK,
            f"no early table entry without the C-bit{but}",
            tuple(e.number for e in line.events if isinstance(e, FixUp)),
        )


def _how(event: FixUp, before: int) -> str:
    """How an entry came to be without the mask."""
    if not isinstance(event, TableChange):
        return "was fixed up without the mask"
    if not event.since:
        return f"had no C-bit when the trace began (#{event.number})"
    what = "lost its C-bit" if before & event.place.mask else "was written without the C-bit"
    return f"{what} {between(event.since, event)}"


def _unmapped_again(line: Timeline, mapping: EarlyMapping) -> bool:
    return any(
        isinstance(e, EarlyMapping)
        and e.number > mapping.number
        and e.bootdata
        and e.address >> 21 == mapping.address >> 21
        and not e.pmd
        for e in line.events
    )


def _is_return_of_copy(event: Event) -> bool:
    return isinstance(event, Cr3Load) and event.kind is Kind.INIT


def refused(line: Timeline) -> Iterator[Verdict]:
    """Did early_make_pgtable refuse a fault, and why?"""
    for event in line.events:
        if not isinstance(event, EarlyMapping) or not event.refused:
            continue
        mask, cr3 = event.mask, event.place.cr3 or 0
        if mask and event.physical & mask:
            yield Verdict(
                "va-without-mask",
                Outcome.FAIL,
                f"an address went through __va with the mask in it: {event.address:#x} is the "
                f"direct map of {event.physical:#x}, mask {mask:#x}",
                (event.number,),
            )
        elif mask and not cr3 & mask:
            yield Verdict(
                "refused-fault",
                Outcome.FAIL,
                f"early_make_pgtable refused the fault at {event.address:#x}: CR3 {cr3:#x} is not "
                "__sme_pa of the early table",
                (event.number,),
            )
        else:
            yield Verdict(
                "refused-fault",
                Outcome.FAIL,
                f"early_make_pgtable refused the fault at {event.address:#x} although CR3 "
                f"{cr3:#x} is right: does it compare with __pa instead of __sme_pa?",
                (event.number,),
            )


def mask_in_address(line: Timeline) -> Iterator[Verdict]:
    """Was an address with the mask in it mapped, or used although it is not canonical?"""
    for event in line.events:
        if (
            isinstance(event, EarlyMapping)
            and not event.refused
            and event.mask
            and event.physical & event.mask
        ):
            yield Verdict(
                "va-without-mask",
                Outcome.FAIL,
                f"an address went through __va with the mask in it: {event.address:#x} is the "
                f"direct map of {event.physical:#x}, mask {event.mask:#x}",
                (event.number,),
            )
        elif isinstance(event, EarlyException) and event.physical is not None:
            yield Verdict(
                "va-without-mask",
                Outcome.FAIL,
                f"an address went through __va with the mask in it: {event.address:#x} (register "
                f"{event.register}, in {event.where}) is the direct map of {event.physical:#x}, "
                f"mask {event.place.mask:#x}: not canonical, hence exception {event.vector}",
                (event.number,),
            )


def protection_map(line: Timeline) -> Iterator[Verdict]:
    """Does protection_map receive the mask in sme_early_init?"""
    left = _left_sme_early_init(line)
    if left is None or not left.place.mask or "protection_map" not in left.detail:
        return
    if "without the mask" in left.detail:
        yield Verdict(
            "protection-map",
            Outcome.FAIL,
            f"sme_early_init did not give the mask to protection_map ({left.detail}): user pages "
            "will be mapped unencrypted",
            (left.number,),
        )
    else:
        yield Verdict(
            "protection-map", Outcome.OK, "protection_map received the mask", (left.number,)
        )


def fatal(line: Timeline) -> Iterator[Verdict]:
    """Did the boot end in an exception?"""
    for event in line.events:
        if isinstance(event, Moment) and event.name == "panic":
            yield Verdict(
                "boot",
                Outcome.FAIL,
                f"the kernel gave up: {event.detail or 'panic'}",
                (event.number,),
            )


RULES: tuple[Rule, ...] = (
    mask_kept,
    flags_before_first_fault,
    cr3_right,
    early_tables,
    refused,
    mask_in_address,
    protection_map,
    fatal,
)

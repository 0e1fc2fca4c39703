# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images, ready to boot: those of the manifest, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gdb_sme.cachedir import cache_directory
from gdb_sme.errors import ImageError
from gdb_sme.harness.images import manifest
from gdb_sme.harness.images.buildid import elf_build_id, kernel_build_id
from gdb_sme.harness.images.cache import DamagedError, Record, Slot
from gdb_sme.harness.images.debian_source import DebianTreeSource
from gdb_sme.harness.images.initramfs import SHELL_MARKER, initramfs
from gdb_sme.harness.images.manifest import Entry
from gdb_sme.harness.images.progress import Progress

# The serial console is what the harness reads. Without nokaslr, the addresses in vmlinux are not
# those in the guest.
USER_APPEND = "console=ttyS0 nokaslr"

_TREES = "trees"
"""The slot of the trees that variants share; it is empty but while they are built."""


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel that can be booted.

    Attributes:
        name: from the manifest, with the variant; a file's name for the user's own.
        kernel: what QEMU's -kernel takes.
        vmlinux: the ELF file with its symbols; None when the user has none.
        initrd: what QEMU's -initrd takes; None when the image needs none.
        append: its kernel command line.
        build_id: of kernel and vmlinux, in hexadecimal; None when they carry none.
        shell_marker: the line on the serial console that tells that it is up.
        description: what it is, for people.
    """

    name: str
    kernel: Path
    vmlinux: Path | None
    initrd: Path | None
    append: str
    build_id: str | None
    shell_marker: str
    description: str


def obtain(name: str, *, progress: Progress | None = None) -> Image:
    """The image ``NAME`` or ``NAME:VARIANT`` of the manifest, from the cache.

    What is not in the cache, or damaged there, is fetched first. What is there and whole needs no
    network, no apt and no lock.

    Args:
        progress: where to show work that takes time; standard error when None.

    Raises:
        ImageError: there is no such image, or it cannot be fetched.
    """
    entry, variant = manifest.find(name, manifest.load())
    return _obtain(entry, variant, progress or Progress())


def obtain_all(names: Sequence[str], *, progress: Progress | None = None) -> Iterator[Image]:
    """Every image of ``names``, each as by ``obtain``, as soon as it is there.

    Variants that are built from one package's sources share the tree with them, and what was
    compiled in it, until the last image is there.

    Raises:
        ImageError: as ``obtain``; one of a name that is unknown comes before any work.
    """
    progress = progress or Progress()
    entries = manifest.load()
    wanted = [manifest.find(name, entries) for name in names]
    build = any(
        isinstance(entry.source, DebianTreeSource) and not _cached(entry, variant, progress)
        for entry, variant in wanted
    )
    with ExitStack() as stack:
        trees = None
        if build:
            stack.enter_context(_cache_errors(_TREES))
            slot = Slot(cache_directory(), _TREES)
            stack.enter_context(slot.locked(progress))
            trees = stack.enter_context(slot.work())
        for entry, variant in wanted:
            source = entry.source
            if isinstance(source, DebianTreeSource):
                source = replace(source, trees=trees)
            yield _obtain(replace(entry, source=source), variant, progress)


def _cached(entry: Entry, variant: str | None, progress: Progress) -> Record | None:
    """The record of an image that needs no fetching, None when it does."""
    label = _label(entry, variant)
    with _cache_errors(label), suppress(DamagedError):
        return _wanted(Slot(cache_directory(), label), entry, progress)
    return None


def _obtain(entry: Entry, variant: str | None, progress: Progress) -> Image:
    label = _label(entry, variant)
    slot = Slot(cache_directory(), label)
    with _cache_errors(label):
        record = _cached(entry, variant, progress)
        if record is None:
            with slot.locked(progress):
                record = _fetch_unless_there(slot, entry, variant, progress)
        return _image(label, entry, slot, record)


def update(name: str, *, progress: Progress | None = None) -> Image:
    """Fetch the newest version of an image on offer, if the cache has another one.

    Arguments, result and errors are those of ``obtain``.
    """
    progress = progress or Progress()
    entry, variant = manifest.find(name, manifest.load())
    label = _label(entry, variant)
    slot = Slot(cache_directory(), label)
    with _cache_errors(label), slot.locked(progress):
        newest = entry.source.newest(progress)
        record = _fetch_unless_there(slot, entry, variant, progress)
        if record.version == newest:
            progress.note(f"{label}: {newest} is the newest version")
        else:
            progress.note(f"{label}: replacing {record.version} by {newest}")
            record = _fetch(slot, entry, variant, newest, progress)
        return _image(label, entry, slot, record)


def stored(entry: Entry, variant: str | None) -> tuple[Slot, Record | None]:
    """The place of an image in the cache and what is recorded there, without looking further.

    Raises:
        DamagedError: the record cannot be understood.
    """
    slot = Slot(cache_directory(), _label(entry, variant))
    return slot, slot.record()


def obtain_user_kernel(
    kernel: Path, vmlinux: Path | None, initrd: Path | None, append: str = ""
) -> Image:
    """A kernel that the user has built.

    Args:
        kernel: a bzImage, or an ELF file with a PVH entry.
        vmlinux: the ELF file with its symbols; None when there is none, or when it is ``kernel``.
        initrd: its initramfs; None gives it this project's own, unless ``append`` names a root
            device (``root=``), which an initramfs would come before.
        append: goes behind the words that every image gets, so that it can override them.

    Raises:
        ImageError: a file cannot be read, or is of no use; ``kernel`` and ``vmlinux`` are not of
            one build; or there is no busybox for the initramfs.
    """
    build_id = kernel_build_id(kernel)
    if vmlinux is None and kernel.read_bytes()[:4] == b"\x7fELF":
        vmlinux = kernel
    if vmlinux is not None:
        _same_build(kernel, build_id, vmlinux)
    if initrd is not None and not initrd.is_file():
        raise ImageError(f"cannot read {initrd}: no such file")
    with _cache_errors(kernel.name):
        if initrd is None and not any(word.startswith("root=") for word in append.split()):
            initrd = initramfs()
    return Image(
        name=kernel.name,
        kernel=kernel,
        vmlinux=vmlinux,
        initrd=initrd,
        append=f"{USER_APPEND} {append}".strip(),
        build_id=build_id,
        shell_marker=SHELL_MARKER,
        description=f"the kernel in {kernel}",
    )


def _label(entry: Entry, variant: str | None) -> str:
    return entry.name if variant is None else f"{entry.name}:{variant}"


@contextmanager
def _cache_errors(label: str) -> Iterator[None]:
    """What the operating system refuses (no space, no permission) is no bug of this program."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ImageError(
            f"{label}: the cache cannot be used: {where}{error.strerror}; "
            "GDB_SME_CACHE moves it elsewhere"
        ) from error


def _wanted(slot: Slot, entry: Entry, progress: Progress) -> Record | None:
    """The record of a slot that is whole and as new as its source asks; None to fetch it.

    Raises:
        DamagedError: it is there and damaged.
    """
    record = slot.record()
    if record is None:
        return None
    if entry.source.outdated(record.version):
        return None
    slot.check(record, progress)
    return record


def _fetch_unless_there(
    slot: Slot, entry: Entry, variant: str | None, progress: Progress
) -> Record:
    """The record of a slot that the caller has locked, after fetching what is missing there."""
    label = _label(entry, variant)
    try:
        record = _wanted(slot, entry, progress)
    except DamagedError as damage:
        progress.note(f"{damage}; fetching {label} again")
        try:
            return _fetch(slot, entry, variant, _version(slot), progress)
        except ImageError as error:
            raise ImageError(f"{damage}, and {error}") from error
    return record or _fetch(slot, entry, variant, None, progress)


def _version(slot: Slot) -> str | None:
    try:
        record = slot.record()
    except DamagedError:
        return None
    return None if record is None else record.version


def _fetch(
    slot: Slot, entry: Entry, variant: str | None, version: str | None, progress: Progress
) -> Record:
    label = _label(entry, variant)
    try:
        with slot.work() as work:
            taken = entry.source.fetch(variant, version, work, progress)
            kernel, vmlinux = work / taken.kernel, work / taken.vmlinux
            build_id = kernel_build_id(kernel)
            _same_build(kernel, build_id, vmlinux)
            return slot.store(work, taken, build_id, progress)
    except ImageError as error:
        raise ImageError(
            f"{label} cannot be fetched: {error}; `scripts/images fetch {label}` tries again"
        ) from error


def _same_build(kernel: Path, kernel_id: str | None, vmlinux: Path) -> None:
    vmlinux_id = elf_build_id(vmlinux)
    if kernel_id != vmlinux_id:
        raise ImageError(
            f"{vmlinux} (build-id {vmlinux_id}) is not of the same build as {kernel} "
            f"(build-id {kernel_id}); take the vmlinux that was built with it"
        )


def _image(label: str, entry: Entry, slot: Slot, record: Record) -> Image:
    return Image(
        name=label,
        kernel=slot.path(record, record.kernel),
        vmlinux=slot.path(record, record.vmlinux),
        initrd=initramfs() if entry.initramfs else None,
        append=entry.append,
        build_id=record.build_id,
        shell_marker=entry.shell_marker,
        description=f"{entry.description}, {record.version}",
    )

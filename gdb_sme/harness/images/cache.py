# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of images: filled whole or not at all, by one run at a time, and checked on use.

One image has one slot, a directory::

    images/debian-6.1/lock            held with flock() by the run that changes the slot
    images/debian-6.1/record.json     what is there; replaced atomically, last
    images/debian-6.1/6.1.192-2/...   the files, and checked.json
    images/debian-6.1/partial-.../    a run at work, or what a killed run left

Who holds the lock may remove all that the record does not name. Readers need no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gdb_sme.errors import ImageError
from gdb_sme.harness.images.progress import Progress
from gdb_sme.harness.images.source import Taken

LOCK = "lock"
RECORD = "record.json"
CHECKED = "checked.json"
PARTIAL = "partial-"
FORMAT = 1
LOCK_POLL_SECONDS = 0.2
HASH_BYTES = 1 << 22
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an image: its name, its size in bytes, its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """What a slot holds.

    Attributes:
        format: of the record, so that a later version of the program can tell.
        directory: name of the directory with the files.
        version, kernel, vmlinux, origin: as in ``source.Taken``.
        build_id: of kernel and vmlinux, which agree; None when they carry none.
        files: all files.
    """

    format: int
    directory: str
    version: str
    kernel: str
    vmlinux: str
    build_id: str | None
    origin: tuple[str, ...]
    files: tuple[StoredFile, ...]


class DamagedError(ImageError):
    """A file of the cache is not as it was stored; the text names it."""


def replace_file(path: Path, contents: bytes) -> None:
    """Write ``path`` so that a reader sees the old contents or the new, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PARTIAL, delete=False) as file:
        try:
            file.write(contents)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


class Slot:
    """The place of one image in the cache.

    Args:
        cache: the cache's directory; need not exist.
        label: name of the image, with its variant.
    """

    def __init__(self, cache: Path, label: str) -> None:
        # A colon would end a target's name in the Makefile of an image that is built here.
        self._directory = cache / "images" / label.replace(":", "+")
        self._label = label

    def record(self) -> Record | None:
        """What is stored; None when nothing is.

        Raises:
            DamagedError: the record cannot be understood.
        """
        path = self._directory / RECORD
        try:
            return _parse_record(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path} is damaged") from error

    def path(self, record: Record, name: str) -> Path:
        """Path of the stored file ``name``."""
        return self._directory / record.directory / name

    def check(self, record: Record, progress: Progress, *, full: bool = False) -> None:
        """See that all files are as they were stored.

        Size, inode, and times of change of each are compared with what they were when the file's
        hash was last found right; if they differ, or that was before the machine's last boot, or
        ``full`` is set, the hash is taken again.

        Raises:
            DamagedError: one is not; names it.
        """
        checked_path = self.path(record, CHECKED)
        checked: Any = None
        with contextlib.suppress(FileNotFoundError, ValueError):  # no file was checked, then
            checked = json.loads(checked_path.read_bytes())
        now = {}
        for file in record.files:
            path = self.path(record, file.name)
            try:
                now[file.name] = _signature(path)
                if (
                    full
                    or not isinstance(checked, dict)
                    or checked.get(file.name) != now[file.name]
                ):
                    _check_file(path, file, progress)
            except FileNotFoundError as error:
                raise DamagedError(f"{path} is missing") from error
        if now != checked:
            # A cache that cannot be written can be used: hashing on each use is all it costs.
            with contextlib.suppress(OSError):
                replace_file(checked_path, json.dumps(now).encode())

    @contextlib.contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Hold the slot alone; waits for another run that does. Clears what dead runs left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / LOCK).open("ab") as lock:
            if not _try_lock(lock.fileno()):
                with progress.step(f"waiting for another run that works on {self._label}") as step:
                    while not _try_lock(lock.fileno()):
                        time.sleep(LOCK_POLL_SECONDS)
                        step(0)
            self._clear()
            yield

    @contextlib.contextmanager
    def work(self) -> Iterator[Path]:
        """A directory to fill, removed unless it is stored; only with the slot locked."""
        path = Path(tempfile.mkdtemp(dir=self._directory, prefix=PARTIAL))
        path.chmod(0o755)
        try:
            yield path
        finally:
            if path.exists():
                shutil.rmtree(path)

    def store(self, work: Path, taken: Taken, build_id: str | None, progress: Progress) -> Record:
        """Make the files in ``work`` what the slot holds, in place of what it held before."""
        signatures = {name: _signature(work / name) for name in taken.files}
        record = Record(
            format=FORMAT,
            directory=taken.version,
            version=taken.version,
            kernel=taken.kernel,
            vmlinux=taken.vmlinux,
            build_id=build_id,
            origin=taken.origin,
            files=tuple(
                StoredFile(name, (work / name).stat().st_size, _hash(work / name, progress))
                for name in taken.files
            ),
        )
        (work / CHECKED).write_text(json.dumps(signatures))
        final = self._directory / record.directory
        if final.exists():  # damaged, or it would not be stored again
            shutil.rmtree(final)
        work.rename(final)
        replace_file(self._directory / RECORD, json.dumps(asdict(record), indent=2).encode())
        self._clear()
        return record

    def _clear(self) -> None:
        try:
            record = self.record()
        except DamagedError:
            record = None
        keep = {LOCK, RECORD, record.directory if record else RECORD}
        for path in self._directory.iterdir():
            if path.name not in keep:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _parse_record(value: Any) -> Record:
    if value["format"] != FORMAT:
        raise ValueError("a record of another version of gdb_sme")
    value["origin"] = tuple(value["origin"])
    value["files"] = tuple(StoredFile(**file) for file in value["files"])
    return Record(**value)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signature(path: Path) -> list[int | str]:
    """What changes when a file does, or when it may have changed unseen: with the boot."""
    status = path.stat()
    boot_id = BOOT_ID.read_text().strip()
    return [boot_id, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _check_file(path: Path, file: StoredFile, progress: Progress) -> None:
    size = path.stat().st_size
    if size != file.size:
        raise DamagedError(f"{path} is damaged: {size} bytes instead of {file.size}")
    digest = _hash(path, progress)
    if digest != file.sha256:
        raise DamagedError(f"{path} is damaged: SHA-256 {digest} instead of {file.sha256}")


def _hash(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        progress.file_step(f"checking {path.name}", path.stat().st_size) as step,
    ):
        while block := file.read(HASH_BYTES):
            digest.update(block)
            step(file.tell())
    return digest.hexdigest()

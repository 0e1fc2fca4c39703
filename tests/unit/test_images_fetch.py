# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching and caching, with the real apt and dpkg on a small archive made by the test.

The archive has what ``debian-6.1`` of the real manifest asks for: metapackages, a kernel and its
vmlinux. APT_CONFIG makes apt know nothing else, and leave the machine's own lists alone.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.processes import programs_in, wait_for
from tests.unit.test_images_buildid import bzimage, compile_elf

SCRIPT = Path(__file__).parents[2] / "scripts" / "images"
IMAGE = "debian-6.1"
BIG = os.urandom(1 << 20) * 80  # so large that its unpacking shows, and can be interrupted


@dataclass
class Archive:
    """An archive of packages, and an apt that knows no other."""

    root: Path
    trusted: str = "trusted=yes"
    stanzas: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for directory in ("debs", "state/lists/partial", "cache/archives/partial"):
            (self.root / directory).mkdir(parents=True)
        (self.root / "state" / "status").touch()
        (self.root / "apt.conf").write_text(
            f'Dir::State "{self.root}/state";\n'
            f'Dir::State::status "{self.root}/state/status";\n'
            f'Dir::Cache "{self.root}/cache";\n'
            f'Dir::Etc::sourcelist "{self.root}/sources.list";\n'
            f'Dir::Etc::sourceparts "{self.root}/none";\n'
            f'Dir::Etc::parts "{self.root}/none";\n'
            f'Dir::Etc::main "{self.root}/none";\n'
            'APT::Architecture "amd64";\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
        )
        (self.root / "sources.list").write_text(f"deb [{self.trusted}] copy:{self.debs} ./\n")

    @property
    def debs(self) -> Path:
        return self.root / "debs"

    def add(self, name: str, version: str, depends: str, files: dict[str, Path]) -> None:
        tree = self.root / "tree"
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\n"
        control += f"Depends: {depends}\n" * bool(depends) + "Description: test\n"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(control)
        for path, contents in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(contents, tree / path)
        deb = self.debs / f"{name}_{version}_amd64.deb"
        command = ("dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(deb))
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(tree)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.stanzas.append(
            f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
        )
        self.write_index()

    def write_index(self) -> None:
        index = "\n".join(self.stanzas)
        (self.debs / "Packages").write_text(index)
        digest = hashlib.sha256(index.encode()).hexdigest()
        (self.debs / "Release").write_text(
            "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
            f"SHA256:\n {digest} {len(index.encode())} Packages\n"
        )

    def publish(
        self,
        number: int,
        *,
        debug: bool = True,
        vmlinux_id: str | None = None,
        contents: bytes = b"",
    ) -> None:
        """Add kernel ``6.1.0-NUMBER`` with its metapackages, and vmlinux if ``debug``."""
        release, version = f"6.1.0-{number}-cloud-amd64", f"6.1.{number}-1"
        elf = compile_elf(self.root / "elf", f"-Wl,--build-id=0x{number:08}")
        kernel = bzimage(self.root / "bzImage", gzip.compress(elf.read_bytes()))
        vmlinux = compile_elf(
            self.root / "vmlinux", f"-Wl,--build-id=0x{vmlinux_id or f'{number:08}'}"
        )
        with vmlinux.open("ab") as file:
            file.write(contents)
        config = self.root / "config"
        config.write_text(f"# {version}\n")
        image = f"linux-image-{release}"
        self.add("linux-image-cloud-amd64", version, f"{image} (= {version})", {})
        self.add(
            f"{image}-unsigned",
            version,
            "",
            {f"boot/config-{release}": config, f"boot/vmlinuz-{release}": kernel},
        )
        self.add("linux-image-cloud-amd64-dbg", version, f"{image}-dbg (= {version})", {})
        if debug:
            path = f"usr/lib/debug/boot/vmlinux-{release}"
            self.add(f"{image}-dbg", version, "", {path: vmlinux, "usr/lib/other": config})

    def withdraw(self) -> None:
        """Take all packages out of the archive."""
        self.stanzas.clear()
        for deb in self.debs.glob("*.deb"):
            deb.unlink()


@dataclass
class Machine:
    """An archive, a cache, and ``scripts/images`` working with them."""

    archive: Archive
    cache: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "APT_CONFIG": str(self.archive.root / "apt.conf"),
            "GDB_SME_CACHE": str(self.cache),
        }

    @property
    def slot(self) -> Path:
        return self.cache / "images" / IMAGE

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            (sys.executable, str(SCRIPT), *arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Standard output and standard error of ``scripts/images``, which ends with ``status``."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == status, err
        assert "Traceback" not in err
        return out, err

    def error(self, *arguments: str) -> str:
        """The last line of standard error, the only one that is an error, of a run that fails."""
        out, err = self.run(*arguments, status=1)
        assert out == ""
        *others, last = err.splitlines()
        assert last.startswith("scripts/images: ")
        assert not any(line.startswith("scripts/images: ") for line in others)
        return last.removeprefix("scripts/images: ")

    def paths(self) -> dict[str, Path]:
        out, _ = self.run("path", IMAGE)
        return {line.split()[0]: Path(line.split()[1]) for line in out.splitlines()}

    def go_offline(self) -> None:
        """Leave apt's lists as they are, and take the archive away."""
        self.archive.debs.rename(self.archive.root / "gone")

    def contents(self) -> set[str]:
        return {path.name for path in self.slot.iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(Archive(tmp_path / "archive"), tmp_path / "cache")


@pytest.fixture
def filled(machine: Machine) -> Machine:
    machine.archive.publish(10)
    machine.run("fetch", IMAGE)
    return machine


def flip(path: Path, offset: int) -> None:
    """Damage one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_fetch(machine: Machine) -> None:
    machine.archive.publish(10, contents=BIG)
    out, err = machine.run("fetch", IMAGE)
    assert re.search("^debian-6.1: .*, 6.1.10-1, build-id 00000010$", out)
    names = [line.partition(":")[0] for line in err.splitlines() if ": done (" in line]
    assert names == [  # lists are missing at first
        "apt-get update",
        "downloading Debian kernel 6.1.0-10-cloud-amd64",
        "unpacking vmlinux-6.1.0-10-cloud-amd64",
        "checking vmlinux-6.1.0-10-cloud-amd64",
    ]
    paths = machine.paths()
    assert paths["vmlinux"].read_bytes() == (machine.archive.root / "vmlinux").read_bytes()
    assert paths["kernel"].read_bytes() == (machine.archive.root / "bzImage").read_bytes()
    assert paths["initrd"].read_bytes().startswith(b"070701")
    assert {path.name for path in paths["kernel"].parent.iterdir()} == {
        "checked.json",
        "config-6.1.0-10-cloud-amd64",
        "vmlinux-6.1.0-10-cloud-amd64",
        "vmlinuz-6.1.0-10-cloud-amd64",
    }
    assert machine.contents() == {"lock", "record.json", "6.1.10-1"}
    record = json.loads((machine.slot / "record.json").read_text())
    assert record["origin"] == [
        "linux-image-6.1.0-10-cloud-amd64-unsigned 6.1.10-1",
        "linux-image-6.1.0-10-cloud-amd64-dbg 6.1.10-1",
    ]


def test_offline_once_filled(filled: Machine, tmp_path: Path) -> None:
    """Neither apt nor anything else is called: there is nothing else to call."""
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "busybox").symlink_to(str(shutil.which("busybox")))
    shutil.rmtree(filled.archive.root)
    environment = {**filled.environment, "PATH": str(bare)}
    done = subprocess.run(
        (sys.executable, str(SCRIPT), "path", IMAGE),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "vmlinux-6.1.0-10-cloud-amd64" in done.stdout


def test_cache_that_cannot_be_written_can_be_used(filled: Machine) -> None:
    """Root can write anywhere, so what is tested is that nothing has to be written."""
    before = {path: path.stat().st_mtime_ns for path in filled.cache.rglob("*")}
    filled.run("path", IMAGE)
    filled.run("path", IMAGE)
    new = {path: path.stat().st_mtime_ns for path in filled.cache.rglob("*")}
    assert {path for path in new if new[path] != before.get(path)} <= {
        filled.cache,
        filled.cache / "initramfs",
        *(filled.cache / "initramfs").iterdir(),
    }


def test_unreachable_archive(machine: Machine) -> None:
    machine.archive.publish(10)
    subprocess.run(("apt-get", "update"), env=machine.environment, check=True, capture_output=True)
    machine.go_offline()
    error = machine.error("fetch", IMAGE)
    assert error.startswith(
        "debian-6.1 cannot be fetched: apt-get cannot download "
        "linux-image-6.1.0-10-cloud-amd64-unsigned and linux-image-6.1.0-10-cloud-amd64-dbg: "
    )
    assert "No such file" in error
    assert error.endswith("; `scripts/images fetch debian-6.1` tries again")
    assert machine.contents() == {"lock"}


def test_nothing_on_offer(machine: Machine) -> None:
    machine.archive.write_index()
    error = machine.error("fetch", IMAGE)
    assert "apt offers no linux-image-cloud-amd64 of series 6.1 that comes with" in error
    assert "Debian has it in bookworm" in error


def test_wrong_hash(machine: Machine) -> None:
    machine.archive.publish(10)
    (deb,) = machine.archive.debs.glob("linux-image-6.1.0-10-cloud-amd64-dbg_*.deb")
    flip(deb, deb.stat().st_size - 1)
    error = machine.error("fetch", IMAGE)
    assert "Hash Sum mismatch" in error
    assert machine.contents() == {"lock"}


def test_unsigned_archive(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive", "trusted=no allow-insecure=yes")
    machine = Machine(archive, tmp_path / "cache")
    archive.publish(10)
    assert "Some packages could not be authenticated" in machine.error("fetch", IMAGE)
    assert machine.contents() == {"lock"}


def test_vmlinux_of_another_build(machine: Machine) -> None:
    machine.archive.publish(10, vmlinux_id="0badc0de")
    error = machine.error("fetch", IMAGE)
    assert "vmlinux-6.1.0-10-cloud-amd64 (build-id 0badc0de) is not of the same build" in error
    assert "vmlinuz-6.1.0-10-cloud-amd64 (build-id 00000010)" in error
    assert machine.contents() == {"lock"}


def test_package_without_vmlinux(machine: Machine) -> None:
    machine.archive.publish(10, debug=False)
    name = "linux-image-6.1.0-10-cloud-amd64-dbg"
    machine.archive.add(name, "6.1.10-1", "", {})
    error = machine.error("fetch", IMAGE)
    assert f"{name}_6.1.10-1_amd64.deb has no usr/lib/debug/boot/vmlinux-6.1.0-10" in error


def test_newest_version_that_has_a_vmlinux(machine: Machine) -> None:
    machine.archive.publish(9)
    machine.archive.publish(10)
    machine.archive.publish(11, debug=False)
    out, _ = machine.run("fetch", IMAGE)
    assert "6.1.10-1" in out


def test_version_is_kept_until_update(filled: Machine) -> None:
    filled.archive.publish(11)
    out, err = filled.run("fetch", IMAGE)
    assert "6.1.10-1" in out
    assert err == ""
    out, err = filled.run("update", IMAGE)
    assert "debian-6.1: replacing 6.1.10-1 by 6.1.11-1" in err.splitlines()
    assert "6.1.11-1" in out
    assert filled.contents() == {"lock", "record.json", "6.1.11-1"}
    out, err = filled.run("update", IMAGE)
    assert "debian-6.1: 6.1.11-1 is the newest version" in err.splitlines()
    assert "downloading" not in err


def test_update_without_network(filled: Machine) -> None:
    filled.go_offline()
    out, err = filled.run("update", IMAGE)
    assert "cannot refresh apt's lists of packages: apt-get update failed: " in err
    assert "6.1.10-1" in out


def test_lists_that_promise_what_is_gone(machine: Machine) -> None:
    machine.archive.publish(10)
    subprocess.run(("apt-get", "update"), env=machine.environment, check=True, capture_output=True)
    machine.archive.withdraw()
    machine.archive.publish(11)
    out, err = machine.run("fetch", IMAGE)
    assert "apt-get update: done" in err
    assert "6.1.11-1" in out


@pytest.mark.parametrize("name", ["kernel", "vmlinux"])
def test_damaged_file_is_fetched_again(filled: Machine, name: str) -> None:
    path = filled.paths()[name]
    good = path.read_bytes()
    times = path.stat()
    flip(path, len(good) // 2)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    filled.archive.publish(11)  # a newer one, but this version was wanted
    out, err = filled.run("fetch", IMAGE)
    assert f"{path} is damaged: SHA-256 " in err
    assert "; fetching debian-6.1 again\n" in err
    assert "6.1.10-1" in out
    assert path.read_bytes() == good
    assert filled.run("fetch", IMAGE)[1] == ""


def test_damaged_file_whose_version_is_gone(filled: Machine) -> None:
    flip(filled.paths()["kernel"], 0)
    filled.archive.withdraw()
    filled.archive.publish(11)
    out, _ = filled.run("fetch", IMAGE)
    assert "6.1.11-1" in out
    assert filled.contents() == {"lock", "record.json", "6.1.11-1"}


def test_damaged_file_offline(filled: Machine) -> None:
    path = filled.paths()["vmlinux"]
    flip(path, 100)
    filled.go_offline()
    for _ in range(2):  # it stays damaged, and is not forgotten
        error = filled.error("path", IMAGE)
        assert error.startswith(f"{path} is damaged: SHA-256 ")
        assert ", and debian-6.1 cannot be fetched: apt-get cannot download " in error
        assert error.endswith("; `scripts/images fetch debian-6.1` tries again")


def test_truncated_file(filled: Machine) -> None:
    path = filled.paths()["vmlinux"]
    size = path.stat().st_size
    os.truncate(path, size - 1)
    _, err = filled.run("fetch", IMAGE)
    assert f"{path} is damaged: {size - 1} bytes instead of {size}; " in err
    assert path.stat().st_size == size


def test_missing_file(filled: Machine) -> None:
    path = filled.paths()["vmlinux"]
    path.unlink()
    _, err = filled.run("fetch", IMAGE)
    assert f"{path} is missing; fetching debian-6.1 again" in err.splitlines()
    assert path.is_file()


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"format": 1}', '{"format": 0}', "null"])
def test_damaged_record(filled: Machine, contents: str) -> None:
    record = filled.slot / "record.json"
    record.write_text(contents)
    _, err = filled.run("fetch", IMAGE)
    assert f"{record} is damaged; fetching debian-6.1 again" in err.splitlines()
    assert filled.run("fetch", IMAGE)[1] == ""


@pytest.mark.parametrize("contents", ["", "[]", "{}", '{"vmlinux-6.1.0-10-cloud-amd64": 1}'])
def test_damaged_list_of_checked_files_costs_a_hash(filled: Machine, contents: str) -> None:
    checked = filled.slot / "6.1.10-1" / "checked.json"
    good = json.loads(checked.read_text())
    checked.write_text(contents)
    assert filled.run("fetch", IMAGE)[1] == ""
    assert json.loads(checked.read_text()) == good


def test_copied_cache(filled: Machine, tmp_path: Path) -> None:
    """As a CI system restores it: other inodes, other times, same contents."""
    copy = Machine(filled.archive, tmp_path / "copy")
    shutil.copytree(filled.cache, copy.cache)
    filled.go_offline()
    assert copy.run("fetch", IMAGE)[1] == ""
    flip(copy.paths()["vmlinux"], 100)
    assert "is damaged" in copy.error("fetch", IMAGE)


def test_verify(filled: Machine) -> None:
    out, _ = filled.run("verify")
    assert out == "debian-6.1: 6.1.10-1, 3 files as they were stored\n"
    assert filled.error("verify", "debian-6.12").startswith("debian-6.12 is not in the cache; ")


def test_verify_sees_what_a_quick_check_cannot(filled: Machine) -> None:
    """Damage below the file system changes no time: here the note of what was checked is made up
    to match."""
    path = filled.paths()["vmlinux"]
    flip(path, 100)
    checked = path.parent / "checked.json"
    noted = json.loads(checked.read_text())
    status = path.stat()
    noted[path.name][-2:] = [status.st_mtime_ns, status.st_ctime_ns]
    checked.write_text(json.dumps(noted))
    assert filled.run("path", IMAGE)[1] == ""
    assert filled.error("verify", IMAGE).startswith(f"{path} is damaged: SHA-256 ")
    assert noted[path.name][0] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    noted[path.name][0] = "of another boot"
    checked.write_text(json.dumps(noted))
    assert f"{path} is damaged: SHA-256 " in filled.run("fetch", IMAGE)[1]


def test_list(filled: Machine) -> None:
    out, _ = filled.run("list")
    assert f"  debian-6.1: 6.1.10-1, 0 MiB in {filled.slot / '6.1.10-1'}" in out.splitlines()
    assert "  debian-6.12: not in the cache" in out.splitlines()
    assert "  rfc-v2:good: not in the cache" in out.splitlines()
    (filled.slot / "record.json").write_text("")
    out, _ = filled.run("list")
    assert f"  debian-6.1: {filled.slot}/record.json is damaged" in out.splitlines()


def test_unknown_image(machine: Machine) -> None:
    assert machine.error("fetch", "debian-5").startswith("there is no image 'debian-5'; ")


def test_cache_where_none_can_be(machine: Machine) -> None:
    machine.archive.publish(10)
    machine.cache = Path("/proc/nowhere")
    error = machine.error("fetch", IMAGE)
    assert error.startswith("debian-6.1: the cache cannot be used: /proc/nowhere")
    assert error.endswith("; GDB_SME_CACHE moves it elsewhere")


def test_two_runs_at_once(machine: Machine) -> None:
    machine.archive.publish(10, contents=BIG)
    runs = [machine.start("fetch", IMAGE) for _ in range(3)]
    results = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert sum("downloading" in err for _, err in results) == 1
    assert len({out for out, _ in results}) == 1
    assert machine.contents() == {"lock", "record.json", "6.1.10-1"}


def test_waiting_for_another_run(machine: Machine) -> None:
    machine.archive.publish(10)
    machine.slot.mkdir(parents=True)
    with (machine.slot / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = machine.start("fetch", IMAGE)
        assert run.stderr is not None
        line = run.stderr.readline()
        assert line == "waiting for another run that works on debian-6.1 ...\n"
        assert run.poll() is None
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "waiting for another run that works on debian-6.1: done" in err


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("partial-*", signal.SIGKILL),
        ("partial-*/debs/*.deb", signal.SIGKILL),
        ("partial-*/vmlinuz-*", signal.SIGKILL),
        ("partial-*/vmlinux-*", signal.SIGKILL),
        ("partial-*/vmlinux-*", signal.SIGTERM),
    ],
)
def test_killed_halfway(machine: Machine, stage: str, number: int) -> None:
    machine.archive.publish(10, contents=BIG)
    run = machine.start("fetch", IMAGE)
    wait_for(lambda: any(machine.slot.glob(stage)) or run.poll() is not None)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == -number, out + err
    assert not (machine.slot / "record.json").exists()
    assert len(list(machine.slot.glob("partial-*"))) == 1
    wait_for(lambda: not list(programs_in(machine.cache)))
    machine.run("fetch", IMAGE)
    assert machine.contents() == {"lock", "record.json", "6.1.10-1"}
    machine.run("verify", IMAGE)


def test_interrupted(machine: Machine) -> None:
    machine.archive.publish(10, contents=BIG)
    run = machine.start("fetch", IMAGE)
    wait_for(lambda: any(machine.slot.glob("partial-*/vmlinux-*")) or run.poll() is not None)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err.splitlines()[-1] == "scripts/images: interrupted"
    assert "Traceback" not in err
    assert machine.contents() == {"lock"}
    assert not list(programs_in(machine.cache))


def test_killed_while_it_replaces(filled: Machine) -> None:
    """A new version that is not there whole leaves the old one in place."""
    filled.archive.publish(11, contents=BIG)
    run = filled.start("update", IMAGE)
    wait_for(lambda: any(filled.slot.glob("partial-*/vmlinux-*")) or run.poll() is not None)
    run.kill()
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    out, err = filled.run("fetch", IMAGE)
    assert "6.1.10-1" in out
    assert err == ""
    filled.run("update", IMAGE)
    assert filled.contents() == {"lock", "record.json", "6.1.11-1"}

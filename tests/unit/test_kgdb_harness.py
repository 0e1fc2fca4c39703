# SPDX-License-Identifier: GPL-2.0-or-later
"""The runner's --kgdb, the second serial port, and the recipe of the kernels with kgdb."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gdb_sme.errors import UsageError
from gdb_sme.harness.images import Image, manifest
from gdb_sme.harness.images.debian_source import DebianTreeSource
from gdb_sme.harness.images.recipe import recipe_hash
from gdb_sme.harness.kgdb import When, kgdb_config
from gdb_sme.harness.layout import MachineConfig, kernel_command_line, qemu_command
from gdb_sme.harness.options import parse_arguments

RECIPE = manifest.IMAGES_DIRECTORY / "kgdb"

#: A kernel tree whose configuration drops every option that the file "dropped" names.
TREE = """
tinyconfig:
\t: > .config
olddefconfig:
\t[ ! -f dropped ] || { grep -vwFf dropped .config > kept; mv kept .config; }
bzImage:
\tmkdir -p arch/x86/boot
\tcp arch/x86/kernel/head_64.S arch/x86/boot/bzImage
\tcp kernel/events/core.c vmlinux
modules:
\tmkdir -p lib
\tgrep CRC4 .config > lib/crc4.ko
"""
CORE = """\
static void other(void)
{
\tif (event->state != PERF_EVENT_STATE_ACTIVE)
}
static void perf_swevent_event(struct perf_event *event)
{
\tif (event->state != PERF_EVENT_STATE_ACTIVE)
\t\treturn;
}
"""


def config() -> MachineConfig:
    return MachineConfig(Image("k", Path("k"), None, None, "console=ttyS0 nokaslr", None, "", ""))


def test_kgdb_has_an_image_and_a_moment() -> None:
    options = parse_arguments(["--kgdb"])
    assert (options.kgdb, options.image) == (When.SHELL, "kgdb-6.1")
    options = parse_arguments(["--kgdb", "early", "--image", "kgdb-6.12"])
    assert (options.kgdb, options.image) == (When.EARLY, "kgdb-6.12")
    assert parse_arguments(["--image", "rfc-v2"]).kgdb is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kgdb", "--until", "shell"], "--until does not go with --kgdb"),
        (["--kgdb", "late"], "late"),
        ([], "give one of --image NAME and --kernel BZIMAGE"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_arguments(arguments)


def test_second_serial_port_comes_behind_the_console() -> None:
    plain = qemu_command(config(), "ram", Path("/d"))
    assert plain.count("-serial") == 1
    words = qemu_command(kgdb_config(config(), When.SHELL), "ram", Path("/d"))
    ports = [words[at + 1] for at, word in enumerate(words) if word == "-serial"]
    assert ports == ["chardev:console", "chardev:kgdb"]
    assert "socket,id=kgdb,path=/d/kgdb.sock,server=on,wait=off" in words


def test_command_line() -> None:
    def line(when: When) -> list[str]:
        return kernel_command_line(kgdb_config(config(), when)).split()

    assert "kgdboc=ttyS1,115200" in line(When.SHELL)
    assert "kgdbwait" not in line(When.SHELL)
    assert "kgdbwait" in line(When.BOOT)
    assert {"earlycon=uart8250,io,0x2f8,115200", "kgdboc_earlycon"} <= set(line(When.EARLY))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sources as the recipe wants them, small."""
    made = tmp_path / "tree"
    for name, text in {
        "Makefile": TREE,
        "kernel/events/core.c": CORE,
        "arch/x86/kernel/head_64.S": "early_top_pgt init_top_pgt init_top_pgt_end\n",
        "include/asm.h": "extern early_top_pgt;\n",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    return made


def make(
    tree: Path, variant: str = "stock", series: str = "6.1"
) -> subprocess.CompletedProcess[str]:
    out = tree.parent / "out"
    out.mkdir()
    command = ["make", "-f", str(RECIPE / "Makefile"), f"SOURCE={tree}", f"OUT={out}"]
    return subprocess.run(
        [*command, f"SERIES={series}", f"VARIANT={variant}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_recipe(tree: Path) -> None:
    done = make(tree, series="6.12")
    assert done.returncode == 0, done.stderr
    out = tree.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "bzImage",
        "config",
        "crc4.ko",
        "vmlinux",
    ]
    options = (out / "config").read_text()
    assert "CONFIG_EFI_STUB=y" in options
    assert "CONFIG_RANDOMIZE_BASE=y" in options
    assert (out / "vmlinux").read_text() == CORE


@pytest.mark.parametrize(
    ("dropped", "named"),
    [
        ("CONFIG_AMD_MEM_ENCRYPT", "CONFIG_AMD_MEM_ENCRYPT=y"),
        ("CONFIG_KGDB_SERIAL_CONSOLE", "CONFIG_KGDB_SERIAL_CONSOLE=y"),
    ],
)
def test_an_option_that_vanishes_is_named(tree: Path, dropped: str, named: str) -> None:
    (tree / "dropped").write_text(dropped + "\n")
    done = make(tree)
    assert done.returncode != 0
    assert f"error: olddefconfig of 6.1 does not keep: {named}\n" in done.stderr
    assert not list((tree.parent / "out").iterdir())


def test_old_names(tree: Path) -> None:
    assert make(tree, "old-names").returncode == 0
    kernel = (tree.parent / "out" / "bzImage").read_text()
    assert kernel == "early_level4_pgt init_level4_pgt init_top_pgt_end\n"


def test_relaxed_test_of_hardware_breakpoints(tree: Path) -> None:
    assert make(tree, "hwbreak").returncode == 0
    built = (tree.parent / "out" / "vmlinux").read_text()
    relaxed = "state < PERF_EVENT_STATE_OFF"
    assert built == CORE[: CORE.index("static void perf")] + CORE[
        CORE.index("static void perf") :
    ].replace("state != PERF_EVENT_STATE_ACTIVE", relaxed)


def test_sources_without_that_test_are_an_error(tree: Path) -> None:
    (tree / "kernel/events/core.c").write_text("other\n")
    assert make(tree, "hwbreak").returncode != 0


def test_unknown_variant(tree: Path) -> None:
    done = make(tree, "fast")
    assert done.returncode != 0
    assert "no variant fast: choose one of stock old-names hwbreak" in done.stderr


def test_manifest_and_recipe_agree_on_the_variants() -> None:
    made = subprocess.run(
        ["make", "-s", "-f", str(RECIPE / "Makefile"), "variants"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    sources = [entry.source for entry in manifest.load()]
    kgdb = [source for source in sources if isinstance(source, DebianTreeSource)]
    assert [list(source.variants) for source in kgdb] == [made, made]


def test_a_changed_recipe_outdates_what_is_cached(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("one\n")
    source = DebianTreeSource("6.1", "bookworm", tmp_path, ("stock",))
    version = f"6.1.192-2+recipe.{recipe_hash(tmp_path)}"
    assert not source.outdated(version)
    (tmp_path / "Makefile").write_text("two\n")
    assert source.outdated(version)

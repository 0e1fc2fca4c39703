# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that a Makefile builds, with a small recipe and with that of rfc-v2."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gdb_sme.errors import ImageError
from gdb_sme.harness.images import Progress, elf_build_id, manifest, obtain
from gdb_sme.harness.images.manifest import Entry
from gdb_sme.harness.images.recipe import RecipeSource
from tests.processes import programs_in, wait_for

MAKEFILE = """
$(OUT)/vmlinux: start.S
\tgcc -nostdlib -static -no-pie -D$(VARIANT) -Wl,--build-id=sha1 start.S -o $@
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a recipe, which is the only one in the manifest, as image ``small``."""
    directory = tmp_path / "recipe"
    directory.mkdir()
    (directory / "Makefile").write_text(MAKEFILE)
    (directory / "start.S").write_text("#ifdef two\nnop\n#endif\n.globl _start\n_start: ret\n")
    source = RecipeSource(directory, ("one", "two"))
    entry = Entry("small", "a kernel", "a test", "", "up", False, source)
    monkeypatch.setattr(manifest, "load", lambda: (entry,))
    monkeypatch.setenv("GDB_SME_CACHE", str(tmp_path / "cache"))
    return directory


def fetch(name: str) -> tuple[Path, str]:
    """The kernel of an image, and what was shown while it was obtained."""
    log = io.StringIO()
    return obtain(name, progress=Progress(log)).kernel, log.getvalue()


def test_build(recipe: Path) -> None:
    log = io.StringIO()
    image = obtain("small:two", progress=Progress(log))
    assert image.name == "small:two"
    assert image.kernel == image.vmlinux
    assert image.initrd is None
    assert image.build_id == elf_build_id(image.kernel) is not None
    assert "building recipe two: done" in log.getvalue()
    assert fetch("small:two") == (image.kernel, "")


def test_variants_are_apart(recipe: Path) -> None:
    one, _ = fetch("small")
    two, _ = fetch("small:two")
    assert one != two
    assert one.read_bytes() != two.read_bytes()
    assert fetch("small:one") == (one, "")


def test_a_changed_recipe_is_built_at_once(recipe: Path) -> None:
    before, _ = fetch("small")
    (recipe / "start.S").write_text(".globl _start\n_start: nop; ret\n")
    after, shown = fetch("small")
    assert "building recipe one: done" in shown
    assert after != before
    assert not before.exists()


def test_what_is_no_part_of_the_recipe(recipe: Path) -> None:
    fetch("small")
    (recipe / ".hidden").touch()
    (recipe / "build").mkdir()
    (recipe / "build" / "vmlinux").touch()
    assert fetch("small")[1] == ""


def test_mistake_in_the_recipe(recipe: Path, tmp_path: Path) -> None:
    (recipe / "start.S").write_text("no_instruction\n")
    with pytest.raises(ImageError) as caught:
        fetch("small")
    message = str(caught.value)
    assert message.startswith(f"small:one cannot be fetched: `make -C {recipe} OUT=")
    assert "no such instruction" in message
    assert "\n" not in message
    slot = tmp_path / "cache" / "images" / "small+one"
    assert [path.name for path in slot.iterdir()] == ["lock"]


def test_recipe_that_makes_nothing(recipe: Path) -> None:
    (recipe / "Makefile").write_text("all:\n")
    with pytest.raises(ImageError, match="made no vmlinux"):
        fetch("small")


def test_no_recipe(recipe: Path) -> None:
    (recipe / "Makefile").unlink()
    with pytest.raises(ImageError, match=f"there is no Makefile in {recipe}"):
        fetch("small")


def test_rfc_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDB_SME_CACHE", str(tmp_path))
    good = obtain("rfc-v2", progress=Progress(io.StringIO()))
    bad = obtain("rfc-v2:plain-cr3", progress=Progress(io.StringIO()))
    assert (good.name, bad.name) == ("rfc-v2:good", "rfc-v2:plain-cr3")
    assert None is not good.build_id != bad.build_id is not None
    assert good.initrd is None


BUILD = """
import sys
from pathlib import Path
from gdb_sme.harness.images import Progress
from gdb_sme.harness.images.recipe import RecipeSource
RecipeSource(Path(sys.argv[1]), ()).fetch(None, None, Path(sys.argv[2]), Progress())
"""


def test_make_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    started = tmp_path / "started"
    # Silent, or the broken pipe might end it.
    (recipe / "Makefile").write_text(f"all:\n\t@echo $$PPID > {started}\n\t@sleep 600\n")
    command = (sys.executable, "-c", BUILD, str(recipe), str(tmp_path))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        wait_for(lambda: run.poll() is not None or (started.exists() and started.read_text()))
        run.kill()
    assert run.returncode == -signal.SIGKILL
    try:
        wait_for(lambda: not list(programs_in(recipe)))
    except AssertionError:
        os.kill(int(started.read_text()), signal.SIGTERM)  # leave nothing behind
        raise

# SPDX-License-Identifier: GPL-2.0-or-later
"""kgdb in every kind of boot: early, moved by KASLR, 5 levels, isolated tables, two CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.gdb import PLUGIN, Gdb
from gdb_sme.harness.kgdb import KgdbSession, When
from gdb_sme.harness.pytest_plugin import OwnSessions, machine_config
from gdb_sme.linux.symtab import has_relocations
from tests.qemu.conftest import Runner
from tests.qemu.kgdb import C_BIT, IMAGES, KM, MASK, TASK, kgdb_session, shown, walk

OLD_NAMES = "kgdb-6.1:old-names"


def early_tables(session: KgdbSession) -> tuple[int, ...]:
    """What a read in the direct map would change: the early tables, and CR2. By QEMU's stub."""
    stub = session.stub
    count = stub.evaluate("next_early_pgt")
    entries = [stub.evaluate(f"early_dynamic_pgts[{n}][{i}]") for n in range(4) for i in (0, 511)]
    return (count, stub.evaluate("$cr2"), *entries)


@pytest.mark.parametrize("image", [*IMAGES, OLD_NAMES])
def test_early_kgdb(image: str) -> None:
    """From setup_arch on, before init_mem_mapping: on early_top_pgt, and nothing may fault."""
    name = "early_level4_pgt" if image == OLD_NAMES else "early_top_pgt"
    with kgdb_session(image, When.EARLY) as session:
        gdb = session.gdb
        session.stop_by_qemu()
        before = early_tables(session)
        cr3 = session.stub.evaluate("$cr3")
        over_stub = walk(session.stub, f"&{name}")
        session.resume_by_qemu()
        assert "setup_arch" in gdb.execute("backtrace")
        status = shown(gdb, "sme status")
        assert status["stage"] == "early"
        assert status["cpus"][0]["kernels_table"]["name"] == name
        assert walk(gdb, f"&{name}") == over_stub
        assert walk(gdb, f"&{name} --root {name}") == over_stub
        assert gdb.evaluate(f"$sme_pa({name})") == cr3
        assert f"has loaded {cr3:#018x}, {name}" in gdb.execute("sme cr3")
        gdb.execute("sme trace start --quiet")  # reads all that it compares
        for command in ("sme pte page_offset_base+0x2000000", "sme dump", "sme find 0x2000000"):
            gdb.run(command)
        gdb.run("sme audit")
        refused = gdb.execute("sme pte 0x1000 --root 0x3000000")
        assert "a read is itself an early page fault" in refused
        session.stop_by_qemu()
        after = early_tables(session)
        session.resume_by_qemu()
        assert after == before
        gdb.execute("sme trace stop")
        # kgdb itself sets debug registers here, and they work.
        assert "swallows" not in gdb.execute("hbreak init_mem_mapping")
        assert "init_mem_mapping" in gdb.execute("continue", timeout=120)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("mode", ["pti", "la57"])
def test_other_tables(image: str, mode: str) -> None:
    """Page-table isolation's pair, and 5 levels: the walk is the one from the real CR3."""
    with kgdb_session(
        image, la57=mode == "la57", append="pti=on" if mode == "pti" else ""
    ) as session:
        va = session.gdb.evaluate(f"{TASK}->mm->start_stack")
        status = shown(session.gdb, "sme status")
        over_kgdb = walk(session.gdb, f"{va:#x}")
        known = status["cpus"][0]["kernels_table"]
        user_half = int(known["pa"], 16) | 0x1000
        pair = shown(session.gdb, f"sme pte {va:#x} --root {user_half | MASK:#x}")
        kernels = walk(session.gdb, f"&init_top_pgt --root {user_half | MASK:#x}")
        session.stop_by_qemu()
        over_stub = walk(session.stub, f"{va:#x}")
        cr3 = session.stub.evaluate("$cr3")
    assert over_kgdb == over_stub
    assert over_kgdb["outcome"] == "mapped"
    assert int(known["pa"], 16) == cr3 & ~0xFFF & ~MASK
    isolated = f"user half of page-table isolation at {user_half:#x}"
    assert (isolated in known["detail"]) == (mode == "pti")
    assert len(over_kgdb["levels"]) == status["levels"] == (5 if mode == "la57" else 4)
    if mode == "pti":
        assert pair["pa"] == over_kgdb["pa"]
        assert kernels["outcome"] != "mapped"  # that is what it is for


@pytest.mark.parametrize("image", IMAGES)
def test_moved_by_kaslr(image: str) -> None:
    """Image and direct map are found where KASLR has put them, with no help."""
    with kgdb_session(image, kaslr=True) as session:
        gdb = session.gdb
        found = shown(gdb, "sme status")
        over_kgdb = walk(gdb, "$sp")
        gdb.execute("sme kaslr")
        koff = gdb.evaluate("(long)&_text") - int(found["kernel"]["va"], 16)
        assert koff == 0
        assert "kgdb_breakpoint" in gdb.execute("backtrace 1")
        assert shown(gdb, "sme status")["kernel"]["koff"] == "0x0"
        va = gdb.evaluate(f"{TASK}->mm->start_stack")
        user = walk(gdb, f"{va:#x}")
        stack = gdb.evaluate("$sp")
        base = gdb.evaluate("page_offset_base")
        phys_base = gdb.evaluate("phys_base")
        session.stop_by_qemu()
        stub = session.stub
        status = shown(stub, "sme status")
        assert walk(stub, f"{stack:#x}") == over_kgdb
        assert walk(stub, f"{va:#x}") == user
        table = stub.evaluate("$cr3") & ~MASK & ~0xFFF
        assert stub.evaluate(f"*(unsigned long *){base + table:#x}") != 0
    for name in ("va", "pa", "koff"):
        assert found["kernel"][name] == status["kernel"][name]
    assert int(found["phys_base"], 16) == phys_base
    assert int(found["kernel"]["koff"], 16) or phys_base


INDEX_CACHE = ("show index-cache directory", "show index-cache enabled")


def test_the_index_of_a_vmlinux_with_relocations_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To move the symbols of such a file gdb would read it anew."""
    config = machine_config("kgdb-6.1", memory="256M", kaslr=True)
    vmlinux = config.image.vmlinux
    assert vmlinux is not None
    assert has_relocations(vmlinux)
    monkeypatch.setenv("GDB_SME_CACHE", str(tmp_path))
    with Session(config, "shell") as session:
        settings = [session.gdb.execute(setting) for setting in INDEX_CACHE]
        first = moved(session.gdb)
        assert [session.gdb.execute(setting) for setting in INDEX_CACHE] == settings
        session.gdb.execute("disconnect")
        (index,) = tmp_path.glob("index/*/*.gdb-index")
        made = index.stat().st_mtime_ns
        with Gdb([str(vmlinux)], timeout=240) as gdb:
            gdb.execute(f"source {PLUGIN}")
            gdb.execute(f"target remote {session.machine.gdb_socket}")
            assert moved(gdb) == first
        assert index.stat().st_mtime_ns == made


def moved(gdb: Gdb) -> list[str]:
    """What gdb makes of symbols, lines and types after `sme kaslr`; it has found an index."""
    assert "symbols moved by" in gdb.execute("sme kaslr")
    assert "Cache hits (this session): 1" in gdb.execute("show index-cache stats")
    commands = ("backtrace 3", "info line start_kernel", "print &init_top_pgt", "x/s linux_banner")
    return [gdb.execute(command) for command in (*commands, "ptype struct mm_struct")]


def test_two_cpus() -> None:
    """Each CPU that kgdb has stopped, with its own root."""
    with kgdb_session("kgdb-6.12", smp=2) as session:
        gdb = session.gdb
        status = shown(gdb, "sme status")
        shells = next(
            n
            for n, cpu in enumerate(status["cpus"])
            if "(sh)" in (cpu["kernels_table"]["detail"] or "")
        )
        assert len(status["cpus"]) == 2
        user = gdb.evaluate(f"{TASK}->mm->start_stack")
        assert walk(gdb, f"{user:#x} --root {shells}")["outcome"] == "mapped"
        roots = [shown(gdb, f"sme pte $sp --root {cpu}")["root"]["raw"] for cpu in (0, 1)]
        session.stop_by_qemu()
        cr3 = []
        for thread in (1, 2):
            session.stub.execute(f"thread {thread}")
            cr3.append(session.stub.evaluate("$cr3"))
    assert [int(root, 16) for root in roots][shells] == cr3[shells]
    # An idle CPU keeps the tables of the task before: by its own variable.
    assert [int(root, 16) for root in roots] == cr3


def test_old_names(boot: OwnSessions) -> None:
    """The check that the project is named after, on a kernel with that name."""
    session = boot(OLD_NAMES, "sme", until="x86_64_start_kernel", memory="256M")
    gdb = session.gdb
    report = shown(gdb, "sme cr3 --expect early_level4_pgt")
    assert report["passed"]
    assert report["cpus"][0]["conclusion"] == "CR3 == __sme_pa(early_level4_pgt)"
    table = gdb.evaluate("(long)&early_level4_pgt") - KM
    cr3 = gdb.evaluate("$cr3")
    assert cr3 == table | MASK
    assert gdb.evaluate("$sme_pa(early_level4_pgt)") == cr3
    assert (
        gdb.evaluate("$sme_pa(init_level4_pgt)")
        == gdb.evaluate("(long)&init_level4_pgt") - KM | MASK
    )
    assert walk(gdb, "$pc --root early_level4_pgt") == walk(gdb, "$pc")
    assert walk(gdb, "$pc")["root"]["raw"] == f"{cr3:#018x}"
    assert gdb.run("print &early_top_pgt").failed
    gdb.execute("set var $cr3 = $cr3 & ~(1ULL << 47)")
    failed = gdb.run("sme cr3 --expect early_level4_pgt")
    assert failed.error is not None
    assert "the C-bit is missing" in failed.output


def test_trace_with_old_names(boot: OwnSessions) -> None:
    gdb = boot(OLD_NAMES, "sme", memory="256M").gdb
    gdb.execute("sme trace start --until start_kernel")
    gdb.execute("hbreak start_kernel")
    live = gdb.execute("continue", timeout=120)
    assert "early_level4_pgt" in live
    timeline = shown(gdb, "sme trace check")
    assert timeline["passed"]
    assert timeline["complete"]
    loads = [each["target"] for each in timeline["events"] if each["kind"] == "cr3"]
    assert "early_level4_pgt" in loads
    fixed = {each["of"] for each in timeline["events"] if each["kind"] == "fix-up"}
    assert "early_level4_pgt" in fixed
    rules = {verdict["rule"]: verdict["outcome"] for verdict in timeline["verdicts"]}
    assert (rules["cr3"], rules["early-pmd-flags"]) == ("ok", "ok")


def test_kgdb_that_never_comes(runner: Runner) -> None:
    run = runner.run("--kgdb", "boot", "--image", "rfc-v2", "--timeout", "3", "--batch")
    assert run.returncode == 125
    assert "the guest was not in kgdb in time" in run.stderr
    assert "CONFIG_KGDB_SERIAL_CONSOLE" in run.stderr
    assert not runner.processes()


@pytest.mark.parametrize(
    ("when", "image", "stage"),
    [
        ("shell", "kgdb-6.1", "running"),
        ("boot", "kgdb-6.12", "on init_top_pgt, before user space"),
        ("early", "kgdb-6.12", "early boot, on early_top_pgt"),
    ],
)
def test_runner(runner: Runner, when: str, image: str, stage: str) -> None:
    words = ["--kgdb", when, "--image", image, "--encryption", "sme", "--batch"]
    run = runner.run(*words, "-ex", "sme status", "-ex", "sme cr3", "-ex", "info breakpoints")
    assert run.returncode == 0, run.stderr
    assert f"C-bit {C_BIT}" in run.stdout
    assert stage in run.stdout
    assert "this target gives no CR3" in run.stdout
    assert "No breakpoints" in run.stdout
    assert not runner.processes()
    assert runner.left_behind() == []

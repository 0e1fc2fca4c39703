# SPDX-License-Identifier: GPL-2.0-or-later
"""`sme audit` on other machines: a SEV-ES guest of KVM, and one with EFI firmware.

TCG is neither KVM nor SEV-ES: what the kernel would be told there is answered at breakpoints. What
it does then, to its own tables, is its own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gdb_sme.harness.boot import Session
from gdb_sme.harness.pytest_plugin import machine_config
from tests.qemu.fault import answer, assert_named, entry, rules

C = 1 << 47
PAGE = 0x1000
CPUS = (0, 1)

#: Where kvm_cpuid_base() looks for the leaves of KVM; the signature of TCG is another.
KVM_CPUID_SIGNATURE = 0x40000000
SEV_ES_ENABLED = 1 << 1


def _to(session: Session, function: str) -> None:
    session.gdb.execute(f"thbreak {function}")
    session.gdb.execute("continue")
    assert session.gdb.evaluate("$rip") == session.gdb.evaluate(f"(unsigned long)&{function}")


def _verdict(session: Session, rule: str) -> tuple[str, str]:
    found = rules(session, rule)[rule]
    return found["verdict"], found["text"]


def _percpu(session: Session, variable: str, cpu: int) -> int:
    return session.gdb.evaluate(
        f"__per_cpu_offset[{cpu}] + (unsigned long)&{variable} - (unsigned long)&__per_cpu_start"
    )


@pytest.fixture(scope="module", params=["debian-6.1", "debian-6.12"])
def sev_es_on_kvm(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A SEV-ES guest of KVM with two CPUs, at its shell."""
    config = machine_config(request.param, "sev", smp=len(CPUS))
    with Session(config, "__kvm_cpuid_base") as session:
        assert _verdict(session, "percpu-decrypted") == ("n/a", "not a guest of KVM")
        session.gdb.execute(f"return (unsigned int){KVM_CPUID_SIGNATURE:#x}")
        # Now it is a guest of KVM, and nothing is shared yet.
        _to(session, "kvm_smp_prepare_boot_cpu")
        assert _verdict(session, "percpu-decrypted")[0] == "n/a"
        _to(session, "sev_es_init_vc_handling")
        assert _verdict(session, "ghcb-decrypted") == ("n/a", "not a SEV-ES guest")
        session.gdb.execute(f"set var sev_status |= {SEV_ES_ENABLED}")
        for _ in CPUS:  # init_ghcb() of each
            _to(session, "early_set_memory_decrypted")
            assert _verdict(session, "ghcb-decrypted")[0] == "n/a"
        _to(session, "cpu_init_exception_handling")
        assert session.gdb.run("sme audit").error is None
        assert _verdict(session, "ghcb-decrypted")[0] == "pass"
        # It would ask the hypervisor now, and there is none.
        _to(session, "sev_es_setup_ap_jump_table")
        session.gdb.execute("return (int)0")
        with session.resumed():
            session.machine.console.wait_for(config.image.shell_marker, 60)
        yield session


def test_a_sev_es_guest_of_kvm_passes(sev_es_on_kvm: Session) -> None:
    said = sev_es_on_kvm.gdb.run("sme audit")
    assert said.error is None, said.output
    found = rules(sev_es_on_kvm)
    assert found["percpu-decrypted"]["verdict"] == "pass"
    assert found["ghcb-decrypted"]["verdict"] == "pass"
    assert found["direct-map-encrypted"]["text"].endswith("per-CPU, GHCB")
    console = sev_es_on_kvm.machine.console.text()
    assert "Hypervisor detected: KVM" in console
    assert "Memory Encryption Features active: AMD SEV SEV-ES" in console


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("variable", ["apf_reason", "steal_time", "kvm_apic_eoi"])
def test_an_encrypted_percpu_variable_is_found(
    sev_es_on_kvm: Session, variable: str, cpu: int
) -> None:
    va = _percpu(sev_es_on_kvm, variable, cpu)
    assert_named(sev_es_on_kvm, "percpu-decrypted", va, entry(sev_es_on_kvm, va), C)


@pytest.mark.parametrize("cpu", CPUS)
def test_an_encrypted_ghcb_is_found(sev_es_on_kvm: Session, cpu: int) -> None:
    pointer = _percpu(sev_es_on_kvm, "runtime_data", cpu)
    va = sev_es_on_kvm.gdb.evaluate(f"*(unsigned long *){pointer:#x}")
    assert_named(sev_es_on_kvm, "ghcb-decrypted", va, entry(sev_es_on_kvm, va), C)


@pytest.mark.parametrize("cpu", CPUS)
def test_what_lies_beside_shared_pages_is_not_excepted(sev_es_on_kvm: Session, cpu: int) -> None:
    """The GHCB's backup follows it; per-CPU variables follow those of KVM."""
    pointer = _percpu(sev_es_on_kvm, "runtime_data", cpu)
    ghcb = sev_es_on_kvm.gdb.evaluate(f"*(unsigned long *){pointer:#x}")
    for shared in (ghcb, _percpu(sev_es_on_kvm, "kvm_apic_eoi", cpu) & -PAGE):
        va = shared + PAGE
        assert_named(sev_es_on_kvm, "direct-map-encrypted", va, entry(sev_es_on_kvm, va), C)


#: Of Debian's package ovmf.
FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")
EFI_C_BIT = 46
EFI_C = 1 << EFI_C_BIT
WINDOW = 0xFFFFFFEF00000000, 0xFFFFFFFF00000000


@pytest.fixture(
    scope="module", params=[("debian-6.1", "sme"), ("debian-6.12", "sev")], ids="-".join
)
def efi(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A guest that EFI firmware has booted, at its shell."""
    config = machine_config(*request.param, c_bit=EFI_C_BIT, firmware=FIRMWARE)
    with Session(config, "efi_enter_virtual_mode") as session:
        reason = "no EFI runtime services: efi_mm has no tables"
        assert _verdict(session, "efi-runtime") == ("n/a", reason)
        # SetVirtualAddressMap() at its physical address, then a service in the window.
        for low in (True, False):
            _to(session, "__efi_call")
            assert "CR3 == __sme_pa(efi_mm.pgd)" in session.gdb.execute("sme cr3")
            assert session.gdb.run("sme audit").error is None
            session.gdb.execute("thbreak *$rdi")
            session.gdb.execute("continue")
            assert (session.gdb.evaluate("$rip") < config.memory) is low
            said = session.gdb.run("sme audit")
            assert said.error is None, said.output
            assert "on init_top_pgt, before user space" in said.output
        with session.resumed():
            session.machine.console.wait_for(config.image.shell_marker, 60)
        yield session


def _efi_root(session: Session) -> str:
    """The CR3 value of efi_mm."""
    pa = session.gdb.evaluate("(unsigned long)efi_mm.pgd - page_offset_base")
    return f"{pa | EFI_C:#x}"


def _efi_service(session: Session) -> tuple[int, int]:
    """Virtual and physical address of what efi_mm maps first in its window."""
    start, end = WINDOW
    ranges = answer(session, f"sme dump --root {_efi_root(session)} {start:#x} {end:#x}")["ranges"]
    return int(ranges[0]["start"], 16), int(ranges[0]["pa"], 16)


def test_a_kernel_that_efi_firmware_has_booted_passes(efi: Session) -> None:
    said = efi.gdb.run("sme audit")
    assert said.error is None, said.output
    verdict, text = _verdict(efi, "efi-runtime")
    assert verdict == "pass"
    assert not text.startswith("0 ")
    console = efi.machine.console.text()
    assert "efi: EFI v" in console
    assert "Registered efivars operations" in console
    assert f"active: AMD {efi.machine.config.encryption.upper()}" in console


@pytest.mark.parametrize("up", [0, 1, 2])
@pytest.mark.parametrize("identity", [False, True])
def test_a_wrong_entry_of_efi_mm_is_found(efi: Session, identity: bool, up: int) -> None:
    va, pa = _efi_service(efi)
    where = pa if identity else va
    found = entry(efi, where, up, _efi_root(efi))
    assert_named(efi, "efi-runtime", where, found, EFI_C)

# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO, as a Debian 6.12 kernel with KASLR writes it."""

from __future__ import annotations

from gdb_sme.linux.vmcoreinfo import parse_vmcoreinfo

TEXT = b"""OSRELEASE=6.12.117+deb12-cloud-amd64
BUILD-ID=7f76f39faf07f34cfa9fadd801e131bfa8cb6dc3
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffffb9e1c6c0
OFFSET(uts_namespace.name)=0
SYMBOL(_stext)=ffffffffb8000000
LENGTH(mem_section)=2048
NUMBER(phys_base)=-799014912
SYMBOL(init_top_pgt)=ffffffffb9c22000
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=37000000
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
NUMBER(sme_mask)=140737488355328
"""


def test_what_it_says() -> None:
    found = parse_vmcoreinfo(TEXT + b"\0\0\0")
    assert found.koff == 0x37000000
    assert found.build_id == "7f76f39faf07f34cfa9fadd801e131bfa8cb6dc3"
    assert found.sme_mask == 1 << 47
    assert not found.levels5
    assert found.symbols["init_top_pgt"] == 0xFFFFFFFFB9C22000


def test_where_the_image_lies() -> None:
    image = parse_vmcoreinfo(TEXT).image
    assert image is not None
    assert (image.va, image.pa) == (0xFFFFFFFFB8000000, 0x8600000)
    assert image.koff == 0x37000000
    assert image.phys_base == -799014912 + (1 << 64)


def test_five_levels() -> None:
    assert parse_vmcoreinfo(b"NUMBER(pgtable_l5_enabled)=1\n").levels5


def test_lines_that_are_missing_or_damaged() -> None:
    found = parse_vmcoreinfo(b"SYMBOL(_stext)=xyz\nNUMBER(phys_base)=\n\xff\xfe\nhalf a li")
    assert found.image is None
    assert found.build_id is None
    assert found.sme_mask is None
    assert found.koff == 0

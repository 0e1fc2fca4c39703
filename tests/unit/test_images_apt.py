# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the metapackages lead to, from what a real apt has said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdb_sme.harness.images import apt
from gdb_sme.harness.images.debian import Candidate, candidates

DATA = Path(__file__).parents[1] / "data" / "apt"
CLOUD = (DATA / "show-linux-image-cloud-amd64.txt").read_text()
CLOUD_6_12 = (DATA / "show-linux-image-6.12-cloud-amd64.txt").read_text()

NEW = Candidate("6.1.0-56-cloud-amd64", "6.1.192-2")
OLD = Candidate("6.1.0-50-cloud-amd64", "6.1.176-1")
BACKPORT = Candidate("6.12.117+deb12-cloud-amd64", "6.12.117-1~deb12u1")


def test_packages() -> None:
    packages = apt.parse_show(CLOUD)
    assert [(package.name, package.version) for package in packages] == [
        ("linux-image-cloud-amd64", "6.1.192-2"),
        ("linux-image-cloud-amd64", "6.1.176-1"),
        ("linux-image-cloud-amd64-dbg", "6.1.192-2"),
        ("linux-image-cloud-amd64-dbg", "6.1.176-1"),
    ]
    assert packages[0].depends == "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)"
    assert apt.parse_show("") == ()


def test_newest_first() -> None:
    assert candidates(apt.parse_show(CLOUD), "6.1") == (NEW, OLD)


def test_the_order_is_not_that_of_apt() -> None:
    assert candidates(apt.parse_show(CLOUD)[::-1], "6.1") == (NEW, OLD)


def test_package_names() -> None:
    assert NEW.image == "linux-image-6.1.0-56-cloud-amd64-unsigned"
    assert NEW.debug == "linux-image-6.1.0-56-cloud-amd64-dbg"


def test_backport() -> None:
    assert candidates(apt.parse_show(CLOUD_6_12), "6.12") == (BACKPORT,)


def test_series() -> None:
    both = apt.parse_show(CLOUD + "\n" + CLOUD_6_12)
    assert candidates(both, "6.12") == (BACKPORT,)
    assert candidates(both, "6.1") == (NEW, OLD)  # 6.12 begins with 6.1 as well
    assert candidates(both, "6.6") == ()


@pytest.mark.parametrize("late", ["linux-image-cloud-amd64", "linux-image-cloud-amd64-dbg"])
def test_a_version_needs_both_metapackages(late: str) -> None:
    packages = [
        package
        for package in apt.parse_show(CLOUD)
        if (package.name, package.version) != (late, NEW.version)
    ]
    assert candidates(packages, "6.1") == (OLD,)


def test_debian_order_of_versions() -> None:
    assert apt.newest_first(["6.1.9-1", "6.1.10-1~bpo1", "6.1.10-1", "6.1.9-1"]) == [
        "6.1.10-1",
        "6.1.10-1~bpo1",
        "6.1.9-1",
    ]

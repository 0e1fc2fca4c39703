# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb_sme: AMD memory encryption in the page tables of a live Linux kernel, from gdb."""

__version__ = "0.1.0"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The debugger's side: what implements the ports of ``gdb_sme.core`` over gdb."""

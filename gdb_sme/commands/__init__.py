# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands under gdb's prefix `sme`: parse, ask the pure part, show."""

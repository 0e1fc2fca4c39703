# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel does with paging: its symbols, layout, boot stages and rules. Pure."""

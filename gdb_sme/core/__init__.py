# SPDX-License-Identifier: GPL-2.0-or-later
"""What x86-64 paging is: pure functions over bytes and integers, standard library only."""

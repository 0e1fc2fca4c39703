# SPDX-License-Identifier: GPL-2.0-or-later
"""Results into what a person or a program reads: one token stream, one JSON document."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways in which memory is encrypted, one module a scheme, and the registry that knows them."""

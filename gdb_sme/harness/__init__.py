# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU and gdb from outside: boot a kernel with SME or SEV active and drive gdb on it.

Public interface, for the project's runner and tests and for anybody's own scripts:

- ``layout``: ``MachineConfig`` -> where RAM lies and QEMU's command line (pure),
- ``qemu``: ``Machine``, one running QEMU with its monitor and console,
- ``qmp``: ``Qmp``, QEMU's monitor protocol,
- ``console``: ``Console``, waiting for text on the guest's serial console,
- ``gdb``: ``Gdb``, a gdb session that runs commands one by one (needs pexpect),
- ``boot``: bring a machine to a stop (``reset``, ``shell`` or a location) with gdb attached,
- ``images``: the kernels,
- ``runner``: the command ``scripts/sme-debug``,
- ``pytest_plugin``: fixtures that boot each configuration once a session.
"""

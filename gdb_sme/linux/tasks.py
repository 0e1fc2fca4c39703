# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's tasks, from its own list."""

from __future__ import annotations

from collections.abc import Iterator

from gdb_sme.errors import SymbolError, TargetError
from gdb_sme.linux import tables
from gdb_sme.linux.kernel import Kernel
from gdb_sme.linux.translate import Root

#: More tasks than pid_max allows (PID_MAX_LIMIT, include/linux/threads.h): a broken list.
_MOST = 1 << 22


def processes(kernel: Kernel) -> Iterator[int]:
    """The task_struct of every thread group's leader but init_task, as for_each_process().

    include/linux/sched/signal.h (6.1).

    Raises:
        SymbolError: no init_task or no task_struct in the symbols.
        TargetError: the list is broken.
    """
    first, link = kernel.symbol("init_task"), kernel.symbols.field("task_struct", "tasks")
    if first is None or link is None or kernel.image is None:
        raise SymbolError(
            "the tasks cannot be listed: no init_task or no struct task_struct; load the vmlinux "
            "of this kernel with: file vmlinux"
        )
    head = kernel.image.va_of(first[1]) + link.offset
    yield from (node - link.offset for node in _list(kernel, head, "task list"))


def threads(kernel: Kernel, leader: int) -> Iterator[int]:
    """The task_struct of every thread in the group of ``leader``.

    signal_struct.thread_head (3.14 and later).
    """
    signal = kernel.read_field(leader, "task_struct", "signal")
    head = kernel.symbols.field("signal_struct", "thread_head")
    link = kernel.symbols.field("task_struct", "thread_node")
    if signal and head is not None and link is not None:
        nodes = _list(kernel, signal + head.offset, "thread list")
        yield from (node - link.offset for node in nodes)


def _list(kernel: Kernel, head: int, name: str) -> Iterator[int]:
    """Every node of the list_head at ``head``, without itself."""
    node = kernel.read_field(head, "list_head", "next")
    for _ in range(_MOST):
        if node == head:
            return
        if not node:
            break
        yield node
        node = kernel.read_field(node, "list_head", "next")
    raise TargetError(
        f"the {name} at {head:#x} is broken or not made yet; continue until the kernel has tasks"
    )


def root_of_task(kernel: Kernel, pid: int) -> Root:
    """The root of the task with process or thread id ``pid``: task_struct.mm->pgd.

    Raises:
        TargetError: there is no such task, or it is a kernel thread.
        SymbolError: as `processes`.
    """
    for task in _candidates(kernel, pid):
        mm = kernel.read_field(task, "task_struct", "mm")
        name = tables.task_name(kernel, task)
        if not mm:
            raise TargetError(f"{name} is a kernel thread: it has no tables of its own")
        pgd = kernel.read_field(mm, "mm_struct", "pgd")
        pa = tables.kernel_pa(kernel, pgd) if pgd else None
        if pa is None:
            raise TargetError(f"the tables of {name} cannot be read (mm_struct at {mm:#x})")
        return Root(pa, kernel.sme_pa(pa), bool(kernel.enc.mask), f"--user {pid}", name)
    raise TargetError(f"there is no task {pid}")


def _candidates(kernel: Kernel, pid: int) -> Iterator[int]:
    """The task with ``pid``: a leader if there is one, else any thread."""
    leaders = []
    for task in processes(kernel):
        leaders.append(task)
        if kernel.read_field(task, "task_struct", "pid") == pid:
            yield task
            return
    for leader in leaders:
        for task in threads(kernel, leader):
            if kernel.read_field(task, "task_struct", "pid") == pid:
                yield task
                return

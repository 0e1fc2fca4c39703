# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules on the kernel image's own mapping."""

from __future__ import annotations

from gdb_sme.linux.audit.model import Outcome, judged, not_applicable, rule
from gdb_sme.linux.audit.view import View


def _span(view: View, first: str, last: str) -> tuple[int, int] | None:
    """Run-time addresses of two symbols of the image, None when one is missing."""
    image, ends = view.kernel.image, (view.kernel.symbol(first), view.kernel.symbol(last))
    if image is None or ends[0] is None or ends[1] is None:
        return None
    return image.va_of(ends[0][1]), image.va_of(ends[1][1])


def _encrypted(view: View, first: str, last: str) -> Outcome:
    span = _span(view, first, last)
    if span is None:
        return not_applicable(f"no symbols {first} and {last}")
    bare = [each for each in view.within(*span) if not each.attributes.encrypted]
    left = view.unexplained(bare)
    excepted = ", but .bss..decrypted" if bare else ""
    return judged(
        f"{span[0]:#x}-{span[1]:#x}{excepted}", view.places(left, f"{first} to {last}: no C-bit")
    )


@rule(
    "kernel-text-encrypted",
    what="_text to _etext is mapped with the C-bit",
    why="the kernel was encrypted in place: without it the code is garbage",
    source="__startup_64() in arch/x86/kernel/head64.c adds sme_me_mask to level2_kernel_pgt",
)
def kernel_text_encrypted(view: View) -> Outcome:
    """The high mapping of the code."""
    return _encrypted(view, "_text", "_etext")


@rule(
    "kernel-data-encrypted",
    what="_etext to _end is mapped with the C-bit, .bss..decrypted alone is not",
    why="data in the clear leaks, and reads as garbage where it was encrypted in place",
    source="__startup_64() in arch/x86/kernel/head64.c adds sme_me_mask to level2_kernel_pgt",
)
def kernel_data_encrypted(view: View) -> Outcome:
    """The high mapping of everything else."""
    return _encrypted(view, "_etext", "_end")


@rule(
    "bss-decrypted",
    what="the used part of .bss..decrypted is mapped without the C-bit, the rest is given back",
    why="it is shared with the hypervisor; encrypted, each would read the other's ciphertext",
    source="sme_postprocess_startup() in arch/x86/kernel/head64.c; "
    "mem_encrypt_free_decrypted_mem() in arch/x86/mm/mem_encrypt_amd.c",
)
def bss_decrypted(view: View) -> Outcome:
    """The section's high mapping; before free_initmem() all of it is unencrypted."""
    used = _span(view, "__start_bss_decrypted", "__start_bss_decrypted_unused")
    rest = _span(view, "__start_bss_decrypted_unused", "__end_bss_decrypted")
    if used is None or rest is None or used[0] == rest[1]:
        return not_applicable("this kernel has no .bss..decrypted")
    wrong = [each for each in view.within(*used) if each.attributes.encrypted]
    places = list(view.places(wrong, ".bss..decrypted: C-bit is set"))
    if view.reached("SYSTEM_RUNNING"):
        kept = [each for each in view.within(*rest) if not each.attributes.encrypted]
        places += view.places(kept, ".bss..decrypted, unused and freed: no C-bit")
    return judged(f"{used[0]:#x}-{used[1]:#x}", places)

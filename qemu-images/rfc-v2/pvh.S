/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The loader's part: from the PVH entry (32 bits, no paging, %ebx = struct hvm_start_info) to
 * startup_64 at its physical address, on identity tables that know nothing of encryption.
 */
#include "kernel.h"
#include "pgtable.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define MSR_EFER 0xc0000080

/* Everything here runs or is read at physical addresses. */
#define pa(symbol) ((symbol) - __START_KERNEL_map)

	.section .note.pvh, "a", @note
	.balign 4
	.long 2f - 1f, 4f - 3f, XEN_ELFNOTE_PHYS32_ENTRY
1:	.asciz "Xen"
2:	.balign 4
3:	.long pa(pvh_start_xen)
4:	.balign 4

	.section .head.text, "ax"
	.code32
ENTRY_POINT pvh_start_xen
	cld
	lgdt	pa(pvh_gdt_descr)
	movl	$__KERNEL_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss

	movl	%cr4, %eax
	orl	$0x20, %eax			/* PAE */
	movl	%eax, %cr4
	movl	$pa(pvh_level4_pgt), %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	btsl	$8, %eax			/* LME */
	wrmsr
	movl	%cr0, %eax
	btsl	$31, %eax			/* PG */
	movl	%eax, %cr0
	ljmp	$__KERNEL_CS, $pa(1f)

	.code64
1:	movl	%ebx, %esi			/* startup_64 takes the boot parameters in %rsi */
	jmp	startup_64
END_FUNCTION pvh_start_xen

	.section .init.data, "aw"
	.balign 8
pvh_gdt:
	.quad 0, 0
	.quad 0x00af9a000000ffff		/* __KERNEL_CS */
	.quad 0x00cf92000000ffff		/* __KERNEL_DS */
pvh_gdt_descr:
	.word . - pvh_gdt - 1
	.long pa(pvh_gdt)

	.section .init.data..page_aligned, "aw"
TABLE pvh_level4_pgt
	.quad pa(pvh_level3_pgt) + _KERNPG_TABLE_NO_ENC
	.fill 511, 8, 0
TABLE pvh_level3_pgt
	.quad pa(pvh_level2_pgt) + _KERNPG_TABLE_NO_ENC
	.fill 511, 8, 0
TABLE pvh_level2_pgt				/* the first GiB */
	.set i, 0
	.rept 512
	.quad i << PMD_SHIFT | _KERNPG_TABLE_NO_ENC | _PAGE_PSE
	.set i, i + 1
	.endr

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From startup_64 at its physical address to x86_64_start_kernel at its virtual one, the kernel's
 * page tables, and the entries of early exceptions.
 */
#include "kernel.h"
#include "pgtable.h"

#define MSR_EFER	0xc0000080
#define X86_CR0		0x80050033	/* PG AM WP NE ET MP PE */
#define X86_CR4		0x000000a0	/* PGE PAE */
#define THREAD_SIZE	16384

#define L4_START_KERNEL	511
#define L3_START_KERNEL	510

	.section .head.text, "ax"
	.code64

/*
 * Entered on the loader's identity tables with %rsi = boot parameters (physical). Symbols are
 * reached relative to %rip only: the link addresses are not mapped yet.
 *   %r12  load delta: physical address minus the one linked for
 *   %rbp  load delta + encryption mask, what is added to entries
 */
ENTRY_POINT startup_64
	leaq	init_thread_union + THREAD_SIZE(%rip), %rsp

	leaq	_text(%rip), %r12
	subq	$(_text - __START_KERNEL_map), %r12

	pushq	%rsi
	call	sme_enable
	popq	%rsi
	movq	%r12, %rbp
	addq	sme_me_mask(%rip), %rbp

	/* Fix up the kernel's tables for the load address and the mask. */
#ifdef VARIANT_NO_FIXUP
	addq	%r12, early_level4_pgt + L4_START_KERNEL * 8(%rip)
#else
	addq	%rbp, early_level4_pgt + L4_START_KERNEL * 8(%rip)
#endif
	addq	%rbp, level3_kernel_pgt + L3_START_KERNEL * 8(%rip)
	addq	%rbp, level3_kernel_pgt + (L3_START_KERNEL + 1) * 8(%rip)
	addq	%rbp, level2_fixmap_pgt + 506 * 8(%rip)

	leaq	level2_kernel_pgt(%rip), %rdi
	movl	$PTRS_PER_TABLE, %ecx
1:	testb	$_PAGE_PRESENT, (%rdi)
	jz	2f
	addq	%rbp, (%rdi)
2:	addq	$8, %rdi
	decl	%ecx
	jnz	1b

	/*
	 * An identity mapping of the kernel, to survive the switch of CR3: the pud page and the pmd
	 * page are the first two of early_dynamic_pgts. The image may straddle a boundary of 1 GiB or
	 * of 512 GiB: hence two entries in the top table and in the pud page, and pmd indices that
	 * wrap around.
	 */
	leaq	_text(%rip), %rdi
	leaq	early_level4_pgt(%rip), %rbx
	leaq	early_dynamic_pgts(%rip), %r8
	leaq	PAGE_SIZE(%r8), %r9

	leaq	_KERNPG_TABLE_NO_ENC(%r8), %rdx
	addq	sme_me_mask(%rip), %rdx
	movq	%rdi, %rax
	shrq	$PGDIR_SHIFT, %rax
	movq	%rdx, (%rbx, %rax, 8)
	movq	%rdx, 8(%rbx, %rax, 8)

	leaq	_KERNPG_TABLE_NO_ENC(%r9), %rdx
	addq	sme_me_mask(%rip), %rdx
	movq	%rdi, %rax
	shrq	$PUD_SHIFT, %rax
	andl	$(PTRS_PER_TABLE - 1), %eax
	movq	%rdx, (%r8, %rax, 8)
	incl	%eax
	andl	$(PTRS_PER_TABLE - 1), %eax
	movq	%rdx, (%r8, %rax, 8)

	leaq	_end - 1(%rip), %rcx
	shrq	$PMD_SHIFT, %rcx
	shrq	$PMD_SHIFT, %rdi
	subq	%rdi, %rcx
	incl	%ecx				/* number of large pages */
	movq	%rdi, %rdx
	shlq	$PMD_SHIFT, %rdx
	addq	$(__PAGE_KERNEL_LARGE_EXEC & ~_PAGE_GLOBAL), %rdx
	addq	sme_me_mask(%rip), %rdx
3:	andl	$(PTRS_PER_TABLE - 1), %edi
	movq	%rdx, (%r9, %rdi, 8)
	incl	%edi
	addq	$(1 << PMD_SHIFT), %rdx
	decl	%ecx
	jnz	3b

	movq	%r12, phys_base(%rip)

	pushq	%rsi
	call	sme_encrypt_kernel
	popq	%rsi

	movq	$(early_level4_pgt - __START_KERNEL_map), %rax
	jmp	common_startup_64
END_FUNCTION startup_64

/* %rax = the top table, as a physical address of the link; %rsi is kept for x86_64_start_kernel. */
ENTRY_POINT common_startup_64
	movl	$X86_CR4, %ecx
	movq	%rcx, %cr4

	addq	phys_base(%rip), %rax
	addq	sme_me_mask(%rip), %rax
	movq	%rax, %cr3

	movq	$1f, %rax
	jmp	*%rax
1:
	/* At virtual addresses from here on. */
	lgdt	early_gdt_descr(%rip)
	movl	$__KERNEL_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	leaq	init_thread_union + THREAD_SIZE(%rip), %rsp

	movl	$0x80000001, %eax
	cpuid
	movl	%edx, %edi
	movl	$MSR_EFER, %ecx
	rdmsr
	btsl	$0, %eax			/* SCE */
	btl	$20, %edi			/* the processor has NX */
	jnc	2f
	btsl	$11, %eax			/* NXE */
	btsq	$_PAGE_BIT_NX, early_pmd_flags(%rip)
2:	wrmsr

	movl	$X86_CR0, %eax
	movq	%rax, %cr0
	pushq	$0
	popfq

	movq	%rsi, %rdi
	xorl	%ebp, %ebp
	pushq	$3f
	pushq	$__KERNEL_CS
	pushq	initial_code(%rip)
	lretq
3:	hlt					/* never returned to */
END_FUNCTION common_startup_64

	.section .init.text, "ax"

/* One entry a vector, 16 bytes each: error code (0 where the processor pushes none) and vector. */
	.balign 16
	.globl early_idt_handler_array
	.type early_idt_handler_array, @object
early_idt_handler_array:
	.set vector, 0
	.rept 32
	.balign 16
	.if (0x60227d00 >> vector & 1) == 0	/* vectors 8, 10-14, 17, 21, 29, 30 push their own */
	pushq	$0
	.endif
	pushq	$vector
	jmp	early_idt_handler_common
	.set vector, vector + 1
	.endr
	.balign 16
	.size early_idt_handler_array, . - early_idt_handler_array

/* Builds a struct pt_regs, with the error code in orig_ax. */
INTERRUPT_ENTRY early_idt_handler_common, extra=16
	cld
	xchgq	%rdi, (%rsp)			/* the vector's slot is that of di */
	.cfi_rel_offset rdi, 0
	PUSH	rsi
	PUSH	rdx
	PUSH	rcx
	PUSH	rax
	PUSH	r8
	PUSH	r9
	PUSH	r10
	PUSH	r11
	PUSH	rbx
	PUSH	rbp
	PUSH	r12
	PUSH	r13
	PUSH	r14
	PUSH	r15
	movq	%rdi, %rbx

	cmpq	$14, %rbx			/* page fault */
	jne	1f
	movq	%cr2, %rdi
	call	early_make_pgtable
	testl	%eax, %eax
	jz	2f
1:	movq	%rsp, %rdi
	movl	%ebx, %esi
	call	early_fixup_exception
2:
	POP	r15
	POP	r14
	POP	r13
	POP	r12
	POP	rbp
	POP	rbx
	POP	r11
	POP	r10
	POP	r9
	POP	r8
	POP	rax
	POP	rcx
	POP	rdx
	POP	rsi
	POP	rdi
	addq	$8, %rsp
	.cfi_adjust_cfa_offset -8
	iretq
END_FUNCTION early_idt_handler_common

/* Only ends the hlt of the idle loop, which then reads the port itself. */
	.text
INTERRUPT_ENTRY serial_interrupt
	PUSH	rax
	movb	$0x20, %al			/* end of interrupt */
	outb	%al, $0x20
	POP	rax
	iretq
END_FUNCTION serial_interrupt

	.section .init.data..page_aligned, "aw"
TABLE early_level4_pgt
	.fill 511, 8, 0
	.quad level3_kernel_pgt - __START_KERNEL_map + _KERNPG_TABLE_NO_ENC

	.balign 4096
	.globl early_dynamic_pgts
	.type early_dynamic_pgts, @object
early_dynamic_pgts:
	.fill 512 * EARLY_DYNAMIC_PAGE_TABLES, 8, 0
	.size early_dynamic_pgts, . - early_dynamic_pgts

	.section .data..page_aligned, "aw"
TABLE init_level4_pgt
	.fill 512, 8, 0

TABLE level3_kernel_pgt
	.fill L3_START_KERNEL, 8, 0
	.quad level2_kernel_pgt - __START_KERNEL_map + _KERNPG_TABLE_NO_ENC
	.quad level2_fixmap_pgt - __START_KERNEL_map + _KERNPG_TABLE_NO_ENC

TABLE level2_kernel_pgt
	.set i, 0
	.rept KERNEL_IMAGE_SIZE >> PMD_SHIFT
	.quad i << PMD_SHIFT | __PAGE_KERNEL_LARGE_EXEC
	.set i, i + 1
	.endr
	.fill 512 - (KERNEL_IMAGE_SIZE >> PMD_SHIFT), 8, 0

TABLE level2_fixmap_pgt
	.fill 506, 8, 0
	.quad level1_fixmap_pgt - __START_KERNEL_map + _KERNPG_TABLE_NO_ENC
	.fill 5, 8, 0

TABLE level1_fixmap_pgt
	.fill 512, 8, 0

	.globl init_thread_union
	.type init_thread_union, @object
init_thread_union:
	.fill THREAD_SIZE, 1, 0
	.size init_thread_union, . - init_thread_union

	.data
	.balign 8
early_gdt:
	.quad 0, 0
	.quad 0x00af9a000000ffff		/* __KERNEL_CS */
	.quad 0x00cf92000000ffff		/* __KERNEL_DS */
early_gdt_descr:
	.word . - early_gdt - 1
	.quad early_gdt
	.balign 8
	.globl initial_code
	.type initial_code, @object
	.size initial_code, 8
initial_code:
	.quad x86_64_start_kernel

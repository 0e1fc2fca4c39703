/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What of SME runs at physical addresses (AMD APM volume 2, section 7.10). */
#include "kernel.h"

#define MSR_K8_SYSCFG		0xc0010010
#define MSR_AMD64_SEV		0xc0010131

	.section .init.text, "ax"

/*
 * Sets sme_me_mask and sme_me_loss when the processor has SME, the firmware has enabled it and no
 * hypervisor is there. Leaves the mask zero otherwise: SEV is none of this kernel's business.
 */
FUNCTION sme_enable
	PUSH	rbx

	movl	$0x80000000, %eax
	cpuid
	cmpl	$0x8000001f, %eax
	jb	1f

	movl	$0x8000001f, %eax
	xorl	%ecx, %ecx
	cpuid
	movl	%ebx, %r8d			/* 5:0 position of the C-bit, 11:6 address bits lost */
	btl	$0, %eax			/* SME */
	jnc	1f

	movl	$MSR_AMD64_SEV, %ecx
	rdmsr
	btl	$0, %eax			/* a SEV guest */
	jc	1f

	movl	$1, %eax
	xorl	%ecx, %ecx
	cpuid
	btl	$31, %ecx			/* a hypervisor */
	jc	1f

	movl	$MSR_K8_SYSCFG, %ecx
	rdmsr
	btl	$23, %eax			/* MemEncryptionModEn */
	jnc	1f

	movl	%r8d, %ecx
	andl	$0x3f, %ecx
	movl	$1, %eax
	shlq	%cl, %rax
	movq	%rax, sme_me_mask(%rip)
	movl	%r8d, %eax
	shrl	$6, %eax
	andl	$0x3f, %eax
	movb	%al, sme_me_loss(%rip)

1:	POP	rbx
	ret
END_FUNCTION sme_enable

/* Encrypting the image in place is another patch's. */
FUNCTION sme_encrypt_kernel
	ret
END_FUNCTION sme_encrypt_kernel

	.text
FUNCTION sme_get_me_loss
	movzbl	sme_me_loss(%rip), %eax
	ret
END_FUNCTION sme_get_me_loss

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* x86-64 page tables with 4 levels, under the names that Linux 4.8 gave them. */
#ifndef PGTABLE_H
#define PGTABLE_H

#define __START_KERNEL_map	0xffffffff80000000
#define KERNEL_IMAGE_SIZE	0x20000000	/* what level2_kernel_pgt maps */

#define PAGE_SIZE		0x1000
#define PMD_SHIFT		21
#define PUD_SHIFT		30
#define PGDIR_SHIFT		39
#define PTRS_PER_TABLE		512

#define EARLY_DYNAMIC_PAGE_TABLES 64

#define _PAGE_PRESENT		0x001
#define _PAGE_RW		0x002
#define _PAGE_USER		0x004
#define _PAGE_ACCESSED		0x020
#define _PAGE_DIRTY		0x040
#define _PAGE_PSE		0x080
#define _PAGE_GLOBAL		0x100
#define _PAGE_PROTNONE		0x100	/* when not present */
#define _PAGE_BIT_NX		63

/*
 * Table entries without the encryption mask: all that assembly can build from constants, since the
 * mask is known at run time only. What is meant for the hardware needs the mask added.
 */
#define _KERNPG_TABLE_NO_ENC	(_PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY)
#define _PAGE_TABLE_NO_ENC	(_KERNPG_TABLE_NO_ENC | _PAGE_USER)
#define __PAGE_KERNEL_LARGE_EXEC (_KERNPG_TABLE_NO_ENC | _PAGE_PSE | _PAGE_GLOBAL)

#ifndef __ASSEMBLER__

#define PAGE_MASK		(~(PAGE_SIZE - 1UL))
#define PMD_SIZE		(1UL << PMD_SHIFT)
#define PMD_MASK		(~(PMD_SIZE - 1))
#define MAXMEM			(1UL << 46)
#define __PHYSICAL_MASK		((1UL << 46) - 1)

typedef unsigned long pteval_t;
typedef unsigned long pmdval_t;
typedef unsigned long pudval_t;
typedef unsigned long pgdval_t;
typedef unsigned long pgprotval_t;

typedef struct pgprot { pgprotval_t pgprot; } pgprot_t;
typedef struct { pteval_t pte; } pte_t;
typedef struct { pmdval_t pmd; } pmd_t;
typedef struct { pudval_t pud; } pud_t;
typedef struct { pgdval_t pgd; } pgd_t;

extern unsigned long sme_me_mask;
extern unsigned long phys_base;
extern unsigned long page_offset_base;
extern pteval_t __supported_pte_mask;
extern pmdval_t early_pmd_flags;
extern pgprot_t protection_map[16];

extern pgd_t early_level4_pgt[PTRS_PER_TABLE];
extern pmd_t early_dynamic_pgts[EARLY_DYNAMIC_PAGE_TABLES][PTRS_PER_TABLE];
extern pgd_t init_level4_pgt[PTRS_PER_TABLE];
extern pmd_t level2_kernel_pgt[PTRS_PER_TABLE];

#define _PAGE_NX		(1UL << _PAGE_BIT_NX)
#define _PAGE_ENC		sme_me_mask

#define _KERNPG_TABLE		(_KERNPG_TABLE_NO_ENC | _PAGE_ENC)
#define _PAGE_TABLE		(_PAGE_TABLE_NO_ENC | _PAGE_ENC)
#define __PAGE_KERNEL_LARGE	(__PAGE_KERNEL_LARGE_EXEC | _PAGE_NX)
#define PTE_PFN_MASK		(__PHYSICAL_MASK & PAGE_MASK & ~sme_me_mask)

static inline unsigned long pgd_index(unsigned long va)
{
	return va >> PGDIR_SHIFT & (PTRS_PER_TABLE - 1);
}

static inline unsigned long pud_index(unsigned long va)
{
	return va >> PUD_SHIFT & (PTRS_PER_TABLE - 1);
}

static inline unsigned long pmd_index(unsigned long va)
{
	return va >> PMD_SHIFT & (PTRS_PER_TABLE - 1);
}

static inline unsigned long pte_index(unsigned long va)
{
	return va / PAGE_SIZE & (PTRS_PER_TABLE - 1);
}

/* Physical address of a virtual one, in the kernel image or in the direct map. */
static inline unsigned long __phys_addr_nodebug(unsigned long va)
{
	if (va >= __START_KERNEL_map)
		return va - __START_KERNEL_map + phys_base;
	return va - page_offset_base;
}

#define __pa_nodebug(x)		__phys_addr_nodebug((unsigned long)(x))
#define __va(x)			((void *)((unsigned long)(x) + page_offset_base))

/* The same with the mask put on, for what the hardware reads, and taken off what it gives. */
#define __sme_pa_nodebug(x)	(__pa_nodebug(x) | sme_me_mask)
#define __sme_va(x)		__va((unsigned long)(x) & ~sme_me_mask)

/* A table inside the kernel image, from the entry that points to it. */
static inline void *table_of(unsigned long entry)
{
	return (void *)((entry & PTE_PFN_MASK) + __START_KERNEL_map - phys_base);
}

static inline unsigned long read_cr3(void)
{
	unsigned long value;

	asm volatile("mov %%cr3, %0" : "=r"(value) : : "memory");
	return value;
}

static inline void write_cr3(unsigned long value)
{
	asm volatile("mov %0, %%cr3" : : "r"(value) : "memory");
}

#endif /* __ASSEMBLER__ */
#endif

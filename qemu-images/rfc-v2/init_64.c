// SPDX-License-Identifier: GPL-2.0-or-later
/* The final page tables: init_level4_pgt with the direct map, and a first user page. */
#include "kernel.h"
#include "pgtable.h"

#define POISON_FREE_INITMEM	0xcc
#define PGT_BUF_PAGES		48	/* a page for each GiB of the direct map, and a few */

#define VM_READ			1
#define VM_WRITE		2
#define VM_SHARED		8

#define PAGE_NONE		(_PAGE_PROTNONE | _PAGE_ACCESSED)
#define PAGE_READONLY_EXEC	(_PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED)
#define PAGE_READONLY		(PAGE_READONLY_EXEC | _PAGE_NX)
#define PAGE_SHARED_EXEC	(PAGE_READONLY_EXEC | _PAGE_RW)
#define PAGE_SHARED		(PAGE_SHARED_EXEC | _PAGE_NX)
#define PAGE_COPY_EXEC		PAGE_READONLY_EXEC
#define PAGE_COPY		PAGE_READONLY

pteval_t __supported_pte_mask = ~0UL;

/* Protection of user pages, by VM_READ | VM_WRITE | VM_EXEC | VM_SHARED. */
pgprot_t protection_map[16] = {
	{ PAGE_NONE }, { PAGE_READONLY }, { PAGE_COPY }, { PAGE_COPY },
	{ PAGE_READONLY_EXEC }, { PAGE_READONLY_EXEC }, { PAGE_COPY_EXEC }, { PAGE_COPY_EXEC },
	{ PAGE_NONE }, { PAGE_READONLY }, { PAGE_SHARED }, { PAGE_SHARED },
	{ PAGE_READONLY_EXEC }, { PAGE_READONLY_EXEC }, { PAGE_SHARED_EXEC }, { PAGE_SHARED_EXEC },
};

static char pgt_buf[PGT_BUF_PAGES][PAGE_SIZE] __page_aligned;
static unsigned int pgt_buf_end;
char user_page[PAGE_SIZE] __page_aligned;

static void *alloc_low_page(void)
{
	if (pgt_buf_end == PGT_BUF_PAGES)
		panic("alloc_low_page: no page left for page tables");
	return pgt_buf[pgt_buf_end++];
}

static void *table(unsigned long *entry, unsigned long flags)
{
	if (!*entry)
		*entry = __pa_nodebug(alloc_low_page()) | flags;
	return table_of(*entry);
}

static pmd_t *pmd_of(unsigned long va, unsigned long flags)
{
	pud_t *pud = table(&init_level4_pgt[pgd_index(va)].pgd, flags);
	pmd_t *pmd = table(&pud[pud_index(va)].pud, flags);

	return &pmd[pmd_index(va)];
}

/* Takes NX out of all entries to come on a processor without it. */
void __init x86_configure_nx(void)
{
	unsigned int eax = 0x80000001, ebx, ecx, edx;

	asm("cpuid" : "+a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx));
	if (!(edx & 1 << 20))
		__supported_pte_mask &= ~_PAGE_NX;
}

/* Looks at the table in use through the direct map: an early page fault. */
void __init early_ioremap_init(void)
{
#ifdef VARIANT_VA_KEEPS_MASK
	pgd_t *base = __va(read_cr3());
#else
	pgd_t *base = __sme_va(read_cr3());
#endif

	if (base[PTRS_PER_TABLE - 1].pgd != early_level4_pgt[PTRS_PER_TABLE - 1].pgd)
		panic("early_ioremap_init: 0x%lx is not early_level4_pgt", (unsigned long)base);
}

static void flush_tlb_all(void)
{
	unsigned long cr4;

	asm volatile("mov %%cr4, %0" : "=r"(cr4));
	asm volatile("mov %0, %%cr4" : : "r"(cr4 & ~0x80UL) : "memory");	/* PGE */
	asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
}

/* Unmaps what level2_kernel_pgt maps outside the image. */
void __init cleanup_highmap(void)
{
	for (unsigned long i = 0; i < PTRS_PER_TABLE; i++) {
		unsigned long va = __START_KERNEL_map + (i << PMD_SHIFT);

		if (va + PMD_SIZE <= (unsigned long)_text || va >= (unsigned long)_end)
			level2_kernel_pgt[i].pmd = 0;
	}
	flush_tlb_all();
}

/* Builds the direct map of all RAM in init_level4_pgt, which takes over from early_level4_pgt. */
void __init init_mem_mapping(void)
{
	const struct hvm_memmap_table_entry *memmap = __va(pvh_start_info.memmap_paddr);

	for (uint32_t i = 0; i < pvh_start_info.memmap_entries; i++) {
		unsigned long end = memmap[i].addr + memmap[i].size;

		if (memmap[i].type != XEN_HVM_MEMMAP_TYPE_RAM)
			continue;
		for (unsigned long pa = memmap[i].addr & PMD_MASK; pa < end; pa += PMD_SIZE)
			pmd_of((unsigned long)__va(pa), _KERNPG_TABLE)->pmd =
				pa | ((__PAGE_KERNEL_LARGE | _PAGE_ENC) & __supported_pte_mask);
	}
	write_cr3(__sme_pa_nodebug(init_level4_pgt));
}

/* Maps user_page, writable and shared, as an mmap() would. */
void __init map_user_page(unsigned long va)
{
	pgprotval_t prot = protection_map[VM_READ | VM_WRITE | VM_SHARED].pgprot;
	pte_t *pte = table(&pmd_of(va, _PAGE_TABLE)->pmd, _PAGE_TABLE);

	pte += pte_index(va);
	pte->pte = __pa_nodebug(user_page) | (prot & __supported_pte_mask);
	memcpy((void *)va, linux_banner, 16);
	if (memcmp(user_page, linux_banner, 16))
		panic("map_user_page: 0x%lx does not reach its page", va);
	printk("rfc-v2: user page 0x%lx -> pte 0x%lx\n", va, pte->pte);
}

/* The early tables are gone from here on, poisoned to show who still looks at them. */
void free_initmem(void)
{
	memset(__init_begin, POISON_FREE_INITMEM, __init_end - __init_begin);
}

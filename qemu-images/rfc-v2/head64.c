// SPDX-License-Identifier: GPL-2.0-or-later
/* The first C code: early page tables, early exceptions, boot parameters. */
#include "kernel.h"
#include "pgtable.h"

/* Set before clear_bss(), hence not in .bss. */
unsigned long phys_base __attribute__((section(".data")));
unsigned long page_offset_base = 0xffff880000000000;

/* The PMD entry of a page that an early page fault maps. NX is added in head_64.S, the mask in sme_early_init(). */
pmdval_t early_pmd_flags = __PAGE_KERNEL_LARGE & ~(_PAGE_GLOBAL | _PAGE_NX);

unsigned int next_early_pgt __initdata = 2;	/* the first two hold the identity mapping */

struct gate_struct idt_table[NR_VECTORS] __page_aligned;
struct hvm_start_info pvh_start_info;
char boot_command_line[2048];

/* Drops all but the kernel's own mapping: the identity mapping first, all of them when full. */
void __init reset_early_page_tables(void)
{
	memset(early_level4_pgt, 0, sizeof(pgd_t) * (PTRS_PER_TABLE - 1));
	next_early_pgt = 0;
#ifdef VARIANT_PLAIN_CR3
	write_cr3(__pa_nodebug(early_level4_pgt));
#else
	write_cr3(__sme_pa_nodebug(early_level4_pgt));
#endif
}

/* The table below an entry, made if there is none. NULL when early_dynamic_pgts are used up. */
static void *early_table(unsigned long *entry, unsigned long flags)
{
	if (!*entry) {
		pmd_t *table;

		if (next_early_pgt == EARLY_DYNAMIC_PAGE_TABLES)
			return NULL;
		table = early_dynamic_pgts[next_early_pgt++];
		memset(table, 0, PAGE_SIZE);
		*entry = __pa_nodebug(table) + flags;
	}
	return table_of(*entry);
}

/* Serves a page fault in the direct map with a large page. Returns 0, or -1 if it is not for us. */
int __init early_make_pgtable(unsigned long address)
{
	unsigned long physaddr = address - page_offset_base;
	pgd_t *pgd = &early_level4_pgt[pgd_index(address)];
	pud_t *pud;
	pmd_t *pmd;

#ifdef VARIANT_PLAIN_COMPARE
	if (physaddr >= MAXMEM || read_cr3() != __pa_nodebug(early_level4_pgt))
		return -1;
#else
	if (physaddr >= MAXMEM || read_cr3() != __sme_pa_nodebug(early_level4_pgt))
		return -1;
#endif

#ifdef VARIANT_NO_ENC_PGD
	pud = early_table(&pgd->pgd, _KERNPG_TABLE_NO_ENC);
#else
	pud = early_table(&pgd->pgd, _KERNPG_TABLE);
#endif
	pmd = pud ? early_table(&pud[pud_index(address)].pud, _KERNPG_TABLE) : NULL;
	if (!pmd) {
		reset_early_page_tables();
		return early_make_pgtable(address);
	}

	pmd += pmd_index(address);
	pmd->pmd = (physaddr & PMD_MASK) + early_pmd_flags;
	printk("rfc-v2: early fault 0x%lx -> pmd 0x%lx\n", address, pmd->pmd);
	return 0;
}

void __init early_fixup_exception(struct pt_regs *regs, int trapnr)
{
	unsigned long cr2;

	asm volatile("mov %%cr2, %0" : "=r"(cr2));
	panic("early exception %d rip 0x%lx error 0x%lx cr2 0x%lx cr3 0x%lx", trapnr, regs->ip,
	      regs->orig_ax, cr2, read_cr3());
}

void set_intr_gate(unsigned int vector, const void *handler)
{
	unsigned long offset = (unsigned long)handler;

	idt_table[vector] = (struct gate_struct){
		.offset_low = offset,
		.segment = __KERNEL_CS,
		.bits = 0x8e00,		/* present, interrupt gate */
		.offset_middle = offset >> 16,
		.offset_high = offset >> 32,
	};
}

void __init idt_setup_early_handler(void)
{
	struct __attribute__((packed)) {
		uint16_t size;
		uint64_t address;
	} idt_descr = { sizeof(idt_table) - 1, (unsigned long)idt_table };

	for (unsigned int vector = 0; vector < 32; vector++)
		set_intr_gate(vector, early_idt_handler_array[vector]);
	asm volatile("lidt %0" : : "m"(idt_descr));
}

void __init clear_bss(void)
{
	memset(__bss_start, 0, __bss_stop - __bss_start);
}

/* Reads the boot parameters through the direct map: an early page fault, the first one. */
void __init copy_bootdata(char *real_mode_data)
{
	memcpy(&pvh_start_info, real_mode_data, sizeof(pvh_start_info));
	if (pvh_start_info.magic != XEN_HVM_START_MAGIC)
		panic("no PVH boot parameters");
	if (pvh_start_info.cmdline_paddr) {
		const char *line = __va(pvh_start_info.cmdline_paddr);

		for (size_t i = 0; i < sizeof(boot_command_line) - 1 && line[i]; i++)
			boot_command_line[i] = line[i];
	}
}

void __init x86_64_start_kernel(char *real_mode_data)
{
	reset_early_page_tables();	/* the identity mapping goes */
	clear_bss();
	memset(init_level4_pgt, 0, PAGE_SIZE);

	/* Before the first page fault can be served, which copy_bootdata() causes. */
#ifndef VARIANT_LATE_FLAGS
	sme_early_init();
#endif
	idt_setup_early_handler();
	copy_bootdata(__va(real_mode_data));
#ifdef VARIANT_LATE_FLAGS
	sme_early_init();
#endif

	/* The kernel's own mapping, for the table that takes over. */
	init_level4_pgt[PTRS_PER_TABLE - 1] = early_level4_pgt[PTRS_PER_TABLE - 1];
	x86_64_start_reservations();
}

void __init x86_64_start_reservations(void)
{
	start_kernel();
}

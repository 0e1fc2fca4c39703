/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The kernel's types of arch/x86/include/asm/pgtable_types.h, and values as a live kernel has them
 * with SME active and C-bit 47.
 */
typedef unsigned long pgdval_t, p4dval_t, pudval_t, pmdval_t, pteval_t, pgprotval_t;
typedef struct { pgdval_t pgd; } pgd_t;
typedef struct { pgd_t pgd; } p4d_t; /* folded into the pgd, as with 4 levels */
typedef struct { pudval_t pud; } pud_t;
typedef struct { pmdval_t pmd; } pmd_t;
typedef struct { pteval_t pte; } pte_t;
typedef struct pgprot { pgprotval_t pgprot; } pgprot_t;

pgd_t a_pgd = { 0x0000800002a15067 };
p4d_t a_p4d = { { 0x0000800002a15067 } };
pud_t a_pud = { 0x0000800002a16063 };
pmd_t a_pmd = { 0x8000800002a001e3 };
pte_t a_pte = { 0x8000000003600163 };
pte_t an_empty_pte;
pte_t a_swapped_pte = { 0x0ffffffffFdbb600 };
pgprot_t a_pgprot = { 0x8000800000000163 };
pte_t some_ptes[3] = { { 0x0000800001234067 }, { 0 }, { 0x0000000001235067 } };
struct { pmd_t *entry; pgprot_t protection; } mixed = { &a_pmd, { 0x8000800000000163 } };

int main(void)
{
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-or-later
/* What of SME runs at virtual addresses. */
#include "kernel.h"
#include "pgtable.h"

/* Set before clear_bss(), hence not in .bss. */
unsigned long sme_me_mask __attribute__((section(".data")));
unsigned char sme_me_loss __attribute__((section(".data")));

/*
 * Gives the mask to the flags of all mappings to come: those of early page faults, the kernel's, and
 * user space's. No page fault may be served before the first, or its page is mapped unencrypted.
 */
void __init sme_early_init(void)
{
	if (!sme_me_mask)
		return;

	/* As if the initializer had been taken for enough: the mask is zero when it is computed. */
#ifndef VARIANT_STATIC_FLAGS
	early_pmd_flags |= sme_me_mask;
#endif
	__supported_pte_mask |= sme_me_mask;

#ifndef VARIANT_NO_PROTECTION_MAP
	for (size_t i = 0; i < sizeof(protection_map) / sizeof(protection_map[0]); i++)
		protection_map[i].pgprot |= sme_me_mask;
#endif
}

void __init mem_encrypt_init(void)
{
	if (sme_me_mask)
		printk("AMD Secure Memory Encryption (SME) active, %d address bits lost\n",
		       sme_get_me_loss());
}

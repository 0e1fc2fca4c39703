// SPDX-License-Identifier: GPL-2.0-or-later
/* start_kernel() and the idle loop. */
#include "kernel.h"
#include "pgtable.h"

#define USER_VA		0x400000
#define ACPI_PM1A_CNT	0x604	/* where QEMU's pc and q35 machines have it */
#define ACPI_SLP_EN	0x2000	/* with sleep type 0, soft off there */

const char linux_banner[] =
	"Linux version 4.8.0-rfc-v2 (gdb_sme) (gcc version " __VERSION__ ") #1 " VARIANT "\n";

enum system_states system_state;

static void report(void)
{
	printk("rfc-v2: variant %s, sme_me_mask 0x%lx, early_pmd_flags 0x%lx, cr3 0x%lx\n", VARIANT,
	       sme_me_mask, early_pmd_flags, read_cr3());
}

/* Reads a table of the firmware, at the end of low memory: an early page fault. */
static void __init acpi_boot_table_init(void)
{
	const char *rsdp = __va(pvh_start_info.rsdp_paddr);
	uint32_t rsdt;

	if (!pvh_start_info.rsdp_paddr)
		return;
	memcpy(&rsdt, rsdp + 16, sizeof(rsdt));
	if (memcmp(__va((unsigned long)rsdt), "RSDT", 4))
		panic("acpi_boot_table_init: no RSDT at 0x%x", rsdt);
	printk("ACPI: RSDT at 0x%x\n", rsdt);
}

static void __init setup_arch(void)
{
	x86_configure_nx();
	early_ioremap_init();
	acpi_boot_table_init();
	cleanup_highmap();
	init_mem_mapping();
}

static void power_off(void)
{
	system_state = SYSTEM_POWER_OFF;
	printk("reboot: Power down\n");
	outw(ACPI_SLP_EN, ACPI_PM1A_CNT);
	panic("no power-off through port 0x%x on this machine", ACPI_PM1A_CNT);
}

static bool same(const char *one, const char *other)
{
	while (*one && *one == *other) {
		one++;
		other++;
	}
	return *one == *other;
}

/* In place of user space: a prompt with two commands. */
void __attribute__((noreturn, noipa)) cpu_startup_entry(void)
{
	char line[80];

	for (;;) {
		printk("# ");
		serial_read_line(line, sizeof(line));
		if (same(line, "poweroff"))
			power_off();
		else if (same(line, "report"))
			report();
		else if (line[0])
			printk("%s: not found, only poweroff and report are here\n", line);
	}
}

void __init start_kernel(void)
{
	printk("%s", linux_banner);
	printk("Command line: %s\n", boot_command_line);
	setup_arch();
	mem_encrypt_init();
	map_user_page(USER_VA);
	serial_init();
	report();
	free_initmem();
	system_state = SYSTEM_RUNNING;
	printk("gdb_sme: shell ready\n");
	cpu_startup_entry();
}

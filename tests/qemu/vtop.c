// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How libkdumpfile walks the page tables in a dump.
 *
 * vtop DUMP ROOT ADDRESS...
 *   prints a line each: the entries from the top level down, as they stand, then "-> " and the
 *   physical address, or the library's error. What it takes out of entries it knows from the
 *   dump's VMCOREINFO. ROOT is the physical address of the top table, 0 for the kernel's own.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <libkdumpfile/addrxlat.h>
#include <libkdumpfile/kdumpfile.h>

static void check(kdump_ctx_t *dump, kdump_status status)
{
	if (status == KDUMP_OK)
		return;
	fprintf(stderr, "vtop: %s\n", kdump_get_err(dump));
	exit(1);
}

int main(int argc, char **argv)
{
	kdump_ctx_t *dump = kdump_new();
	addrxlat_ctx_t *context;
	addrxlat_sys_t *system;
	addrxlat_meth_t method;
	int i;

	check(dump, kdump_open_fd(dump, open(argv[1], O_RDONLY)));
	check(dump, kdump_set_string_attr(dump, KDUMP_ATTR_OSTYPE, "linux"));
	check(dump, kdump_get_addrxlat(dump, &context, &system));
	method = *addrxlat_sys_get_meth(system, ADDRXLAT_SYS_METH_PGT);
	if (strtoull(argv[2], NULL, 0)) {
		method.param.pgt.root.as = ADDRXLAT_MACHPHYSADDR;
		method.param.pgt.root.addr = strtoull(argv[2], NULL, 0);
	}

	for (i = 3; i < argc; i++) {
		addrxlat_step_t step = { .ctx = context, .sys = system, .meth = &method };
		addrxlat_status status = addrxlat_launch(&step, strtoull(argv[i], NULL, 0));

		while (status == ADDRXLAT_OK && step.remain) {
			int entry = step.remain > 1;

			status = addrxlat_step(&step);
			if (status == ADDRXLAT_OK && entry)
				printf("%#" PRIx64 " ", (uint64_t)step.raw.pte);
		}
		if (status == ADDRXLAT_OK)
			printf("-> %#" PRIx64 "\n", (uint64_t)step.base.addr);
		else
			printf("%s\n", addrxlat_ctx_get_err(context));
	}
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the kernel's files know of each other. */
#ifndef KERNEL_H
#define KERNEL_H

#ifdef __ASSEMBLER__

#define __KERNEL_CS	0x10
#define __KERNEL_DS	0x18

	.cfi_sections .debug_frame	/* a debugger's backtraces go through assembly, too */

.macro FUNCTION name
	.globl \name
	.type \name, @function
\name:
	.cfi_startproc
.endm

/* Nothing called it: backtraces end here. */
.macro ENTRY_POINT name
	FUNCTION \name
	.cfi_undefined 16		/* rip: 32-bit code does not know its name */
.endm

/* Entered by an interrupt or exception, with extra bytes on the stack below the processor's. */
.macro INTERRUPT_ENTRY name, extra=0
	.globl \name
	.type \name, @function
\name:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 40 + \extra
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
.endm

.macro END_FUNCTION name
	.cfi_endproc
	.size \name, . - \name
.endm

.macro PUSH register
	pushq	%\register
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \register, 0
.endm

.macro POP register
	popq	%\register
	.cfi_adjust_cfa_offset -8
	.cfi_restore \register
.endm

.macro TABLE name
	.balign 4096
	.globl \name
	.type \name, @object
	.size \name, 4096
\name:
.endm

#else

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define __KERNEL_CS	0x10

/* Boot code keeps its own symbol and its calls, so that a debugger can stop at it. */
#define __init		__attribute__((section(".init.text"), noipa))
#define __initdata	__attribute__((section(".init.data")))
#define __page_aligned	__attribute__((section(".bss..page_aligned"), aligned(4096)))

enum system_states {
	SYSTEM_BOOTING,
	SYSTEM_RUNNING,
	SYSTEM_HALT,
	SYSTEM_POWER_OFF,
	SYSTEM_RESTART,
};

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax;
	unsigned long ip, cs, flags, sp, ss;
};

/* What a PVH loader hands over (Xen's public header arch-x86/hvm/start_info.h). */
struct hvm_start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct hvm_memmap_table_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

#define XEN_HVM_START_MAGIC	0x336ec578
#define XEN_HVM_MEMMAP_TYPE_RAM	1

struct gate_struct {
	uint16_t offset_low;
	uint16_t segment;
	uint16_t bits;
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t reserved;
};

#define NR_VECTORS	256

extern char _text[], _end[], __init_begin[], __init_end[], __bss_start[], __bss_stop[];
extern const char linux_banner[];
extern enum system_states system_state;
extern struct hvm_start_info pvh_start_info;
extern char boot_command_line[2048];
extern struct gate_struct idt_table[NR_VECTORS];

extern const char early_idt_handler_array[32][16];
void serial_interrupt(void);
unsigned char sme_get_me_loss(void);

void set_intr_gate(unsigned int vector, const void *handler);
int early_make_pgtable(unsigned long address);
void early_fixup_exception(struct pt_regs *regs, int trapnr);
void x86_64_start_kernel(char *real_mode_data);
void x86_64_start_reservations(void);

void sme_early_init(void);
void mem_encrypt_init(void);

void x86_configure_nx(void);
void early_ioremap_init(void);
void cleanup_highmap(void);
void init_mem_mapping(void);
void map_user_page(unsigned long va);
void free_initmem(void);

void start_kernel(void);
void cpu_startup_entry(void) __attribute__((noreturn));

void printk(const char *format, ...) __attribute__((format(printf, 1, 2)));
void panic(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void serial_init(void);
void serial_read_line(char *line, size_t size);

void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
int memcmp(const void *one, const void *other, size_t size);

static inline void outb(uint8_t value, uint16_t port)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outw(uint16_t value, uint16_t port)
{
	asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

#endif /* __ASSEMBLER__ */
#endif

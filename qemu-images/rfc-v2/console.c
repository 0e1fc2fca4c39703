// SPDX-License-Identifier: GPL-2.0-or-later
/* The serial console on COM1, printk() and panic(), and the few functions that gcc expects. */
#include <stdarg.h>

#include "kernel.h"

#define COM1		0x3f8
#define COM1_IRQ	4
#define IER		(COM1 + 1)
#define MCR		(COM1 + 4)
#define LSR		(COM1 + 5)
#define LSR_DATA_READY	0x01
#define LSR_THR_EMPTY	0x20

#define PIC1		0x20
#define PIC2		0xa0
#define IRQ_VECTORS	0x20

static void put_char(char c)
{
	if (c == '\n')
		put_char('\r');
	while (!(inb(LSR) & LSR_THR_EMPTY))
		;
	outb(c, COM1);
}

static void put_string(const char *s)
{
	while (*s)
		put_char(*s++);
}

static void put_number(unsigned long value, unsigned int base)
{
	char digits[24];
	unsigned int i = sizeof(digits);

	digits[--i] = '\0';
	do {
		digits[--i] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	put_string(&digits[i]);
}

/* Knows %s, %x, %lx and %d, of which no negative number is printed here. */
static void vprintk(const char *format, va_list args)
{
	for (; *format; format++) {
		if (*format != '%') {
			put_char(*format);
			continue;
		}
		switch (*++format) {
		case 's':
			put_string(va_arg(args, const char *));
			break;
		case 'd':
			put_number(va_arg(args, int), 10);
			break;
		case 'x':
			put_number(va_arg(args, unsigned int), 16);
			break;
		case 'l':
			format++;
			put_number(va_arg(args, unsigned long), 16);
			break;
		}
	}
}

void printk(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintk(format, args);
	va_end(args);
}

void panic(const char *format, ...)
{
	va_list args;

	printk("Kernel panic - not syncing: ");
	va_start(args, format);
	vprintk(format, args);
	va_end(args);
	printk("\n");
	for (;;)
		asm volatile("cli; hlt");
}

/* Lets COM1 interrupt, and nothing else. */
void __init serial_init(void)
{
	static const uint8_t setup[][2] = {	/* initialisation words of both controllers */
		{ 0x11, 0x11 }, { IRQ_VECTORS, IRQ_VECTORS + 8 }, { 4, 2 }, { 1, 1 },
		{ (uint8_t)~(1 << COM1_IRQ), 0xff },
	};

	for (unsigned int i = 0; i < sizeof(setup) / sizeof(setup[0]); i++) {
		outb(setup[i][0], PIC1 + (i > 0));
		outb(setup[i][1], PIC2 + (i > 0));
	}
	set_intr_gate(IRQ_VECTORS + COM1_IRQ, serial_interrupt);
	outb(0x0b, MCR);	/* DTR, RTS, and OUT2, which lets the interrupt through */
	outb(0x01, IER);	/* data received */
}

static char read_char(void)
{
	asm volatile("cli");
	while (!(inb(LSR) & LSR_DATA_READY))
		asm volatile("sti; hlt; cli" : : : "memory");
	return inb(COM1);
}

/* Reads up to a line end, which is left out; echoes. What does not fit is dropped. */
void serial_read_line(char *line, size_t size)
{
	size_t length = 0;

	for (;;) {
		char c = read_char();

		if (c == '\r' || c == '\n')
			break;
		if (length < size - 1) {
			line[length++] = c;
			put_char(c);
		}
	}
	line[length] = '\0';
	put_char('\n');
}

void *memset(void *to, int byte, size_t size)
{
	void *start = to;

	asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
	return start;
}

void *memcpy(void *to, const void *from, size_t size)
{
	void *start = to;

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
	return start;
}

int memcmp(const void *one, const void *other, size_t size)
{
	const unsigned char *a = one, *b = other;

	for (size_t i = 0; i < size; i++)
		if (a[i] != b[i])
			return a[i] - b[i];
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-or-later
// Loads the kernel that is to run after a panic: kexec_crash KERNEL INITRD COMMAND-LINE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEXEC_FILE_ON_CRASH 0x2 // include/uapi/linux/kexec.h

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	int kernel = open(argv[1], O_RDONLY), initrd = open(argv[2], O_RDONLY);
	if (kernel < 0 || initrd < 0 ||
	    syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3],
		    KEXEC_FILE_ON_CRASH)) {
		perror("kexec_crash");
		return 1;
	}
	return 0;
}

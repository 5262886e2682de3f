/* SPDX-License-Identifier: MIT */
/* What overhead.py times: `loops NAME COUNT` prints nanoseconds per turn.
 *   getppid    a system call nobody traces
 *   ioctl      KVM_CHECK_EXTENSION on a VM fd: an ioctl that vftrace looks at and lets pass
 *   clock      KVM_GET_CLOCK: an ioctl that vftrace sends a record for
 *   exits      a real-mode guest that leaves to user space (port I/O) every time: KVM_RUN
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int guest(int vm, int kvm)
{
	/* mov dx, 0x80; out dx, al; jmp to the out */
	static const unsigned char code[] = { 0xba, 0x80, 0x00, 0xee, 0xeb, 0xfd };
	void *memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = 0x1000, .memory_size = 0x1000,
		.userspace_addr = (unsigned long)memory,
	};
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	int vcpu;

	memcpy(memory, code, sizeof(code));
	if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL) < 0)
		fail("KVM_SET_TSS_ADDR");
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		fail("KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		fail("KVM_CREATE_VCPU");
	if (mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED,
		 vcpu, 0) == MAP_FAILED)
		fail("mmap");
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
	if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		fail("KVM_SET_REGS");
	return vcpu;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	long count = argc > 2 ? atol(argv[2]) : 0, i;
	struct kvm_clock_data clock;
	long long start;
	int kvm = open("/dev/kvm", O_RDWR), vm, vcpu = -1;

	if (kvm < 0)
		fail("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		fail("KVM_CREATE_VM");
	if (!strcmp(name, "exits"))
		vcpu = guest(vm, kvm);
	start = now();
	for (i = 0; i < count; i++) {
		if (!strcmp(name, "getppid"))
			syscall(SYS_getppid);
		else if (!strcmp(name, "ioctl"))
			ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP);
		else if (!strcmp(name, "clock"))
			ioctl(vm, KVM_GET_CLOCK, &clock);
		else if (ioctl(vcpu, KVM_RUN, 0) < 0)
			fail("KVM_RUN");
	}
	printf("%.1f\n", (double)(now() - start) / count);
	return 0;
}

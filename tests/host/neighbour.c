/* SPDX-License-Identifier: MIT */
/* A hostile user of /dev/kvm, for test_neighbours.py and test_shares.py:
 *
 *     neighbour vms N            N processes with a VM each
 *     neighbour threads N        N threads of one VM that wait inside KVM_RUN
 *     neighbour fds N FDS        N processes with a VM that logs, which send on FDS fds each
 *     neighbour logs N           N threads that read and clear the dense dirty log of 8 GiB for ever
 *     neighbour slots N          N memory slots, one page each, made and deleted for ever
 *     neighbour argv N           a command line of N words, and VMs made for ever
 *     neighbour clocks           KVM_GET_CLOCK for ever
 *     neighbour regions          the argument of each region call is changed by another thread meanwhile
 *
 * Prints "ready" when it is in full swing and goes on until its standard input is closed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGE 4096ULL
#define GIB (1ULL << 30)
#define LOG_BYTES (8 * GIB)

static int vm, vcpu;
static char *memory;
static struct kvm_userspace_memory_region shared;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void make_vm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		fail("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		fail("KVM_CREATE_VM");
	close(kvm);
}

static int region(unsigned slot, unsigned flags, unsigned long long size)
{
	struct kvm_userspace_memory_region r = { .slot = slot, .flags = flags,
						 .guest_phys_addr = 4 * GIB + slot * LOG_BYTES,
						 .memory_size = size,
						 .userspace_addr = (unsigned long)memory };

	if (size == PAGE)
		r.guest_phys_addr = 4 * GIB + slot * PAGE;
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
}

static void map_memory(void)
{
	memory = mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
}

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

static void wait_for_end(void)
{
	char byte;

	while (read(0, &byte, 1) > 0)
		;
	exit(0);
}

static void *end_with_input(void *unused)
{
	(void)unused;
	wait_for_end();
	return NULL;
}

static void start(void *(*run)(void *), int count)
{
	pthread_attr_t small;
	pthread_t thread;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 16384);
	for (int i = 0; i < count; i++)
		if (pthread_create(&thread, &small, run, NULL))
			fail("pthread_create");
}

static void *run_vcpu(void *unused)
{
	(void)unused;
	ioctl(vcpu, KVM_RUN, 0);
	return NULL;
}

static void *read_log(void *unused)
{
	size_t bytes = LOG_BYTES / PAGE / 8;
	void *got = malloc(bytes), *cleared = malloc(bytes);
	struct kvm_dirty_log get = { .slot = 1, .dirty_bitmap = got };
	struct kvm_clear_dirty_log clear = { .slot = 1, .num_pages = LOG_BYTES / PAGE, .dirty_bitmap = cleared };

	(void)unused;
	memset(cleared, 0x55, bytes);
	for (;;) {
		ioctl(vm, KVM_GET_DIRTY_LOG, &get);
		ioctl(vm, KVM_CLEAR_DIRTY_LOG, &clear);
	}
	return NULL;
}

static void *flip(void *unused)
{
	(void)unused;
	for (;;) {
		__atomic_store_n(&shared.memory_size, GIB, __ATOMIC_RELAXED);
		__atomic_store_n(&shared.memory_size, 2 * GIB, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void processes(int count, int fds)
{
	int pipes[2];
	char byte = 0;

	if (pipe(pipes) < 0)
		fail("pipe");
	for (int i = 0; i < count; i++) {
		pid_t child = fork();

		if (child < 0)
			fail("fork");
		if (child)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		make_vm();
		if (fds) {
			map_memory();
			if (region(1, 0, GIB) || region(1, KVM_MEM_LOG_DIRTY_PAGES, GIB))
				fail("KVM_SET_USER_MEMORY_REGION");
		}
		for (int n = 0; n < fds; n++) {
			int fd = open("/dev/null", O_WRONLY);

			if (fd < 0 || write(fd, &byte, 1) != 1)
				fail("/dev/null");
		}
		if (write(pipes[1], &byte, 1) != 1)
			fail("pipe");
		for (;;)
			pause();
	}
	for (int i = 0; i < count; i++)
		if (read(pipes[0], &byte, 1) != 1)
			fail("pipe");
	ready();
	wait_for_end();
}

static void long_command_line(char **argv, int count)
{
	struct rlimit stack = { RLIM_INFINITY, RLIM_INFINITY };
	char **words = calloc(count + 3, sizeof(*words));

	words[0] = argv[0];
	words[1] = "again";
	for (int i = 2; i < count + 2; i++)
		words[i] = "x";
	/* A quarter of the stack's limit, but never more than 6 MiB (fs/exec.c, bprm_stack_limits). */
	setrlimit(RLIMIT_STACK, &stack);
	execv("/proc/self/exe", words);
	fail("exec");
}

int main(int argc, char **argv)
{
	struct kvm_enable_cap protect = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 3 } };
	struct rlimit files = { 65536, 65536 };
	int count = argc > 2 ? atoi(argv[2]) : 0;
	pthread_t end;

	if (argc < 2)
		return 2;
	setrlimit(RLIMIT_NOFILE, &files);
	if (!strcmp(argv[1], "vms"))
		processes(count, 0);
	if (!strcmp(argv[1], "fds"))
		processes(count, atoi(argv[3]));
	if (!strcmp(argv[1], "argv"))
		long_command_line(argv, count);
	pthread_create(&end, NULL, end_with_input, NULL);
	make_vm();
	map_memory();
	if (!strcmp(argv[1], "threads")) {
		vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
		if (vcpu < 0)
			fail("KVM_CREATE_VCPU");
		start(run_vcpu, count);
		ready();
	} else if (!strcmp(argv[1], "logs")) {
		if (ioctl(vm, KVM_ENABLE_CAP, &protect) || region(1, 0, LOG_BYTES) ||
		    region(1, KVM_MEM_LOG_DIRTY_PAGES, LOG_BYTES))
			fail("KVM_SET_USER_MEMORY_REGION");
		start(read_log, count);
		ready();
	} else if (!strcmp(argv[1], "slots")) {
		for (int i = 0; i < count; i++)
			if (region(i, 0, PAGE))
				fail("KVM_SET_USER_MEMORY_REGION");
		ready();
		for (int i = 0;; i++) {
			region(i % count, 0, 0);
			region(i % count, 0, PAGE);
		}
	} else if (!strcmp(argv[1], "clocks")) {
		struct kvm_clock_data clock;

		ready();
		for (;;)
			ioctl(vm, KVM_GET_CLOCK, &clock);
	} else if (!strcmp(argv[1], "again")) {
		ready();
		for (;;) {
			close(vm);
			make_vm();
		}
	} else if (!strcmp(argv[1], "regions")) {
		start(flip, 1);
		ready();
		for (;;) {
			shared.slot = 1;
			shared.guest_phys_addr = 4 * GIB;
			shared.userspace_addr = (unsigned long)memory;
			ioctl(vm, KVM_SET_USER_MEMORY_REGION, &shared);
			region(1, 0, 0);
		}
	}
	for (;;)
		pause();
}

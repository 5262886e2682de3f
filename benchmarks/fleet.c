/* VMs that make the requests of a migrating VMM, and idle ones, for fleet.py:
 *
 *     fleet MIGRATING IDLE GIB ROUND_MS SECONDS
 *
 * Prints "ready" when all VMs run, and begins all migrations when a byte comes on standard input. Each is one
 * thread that does what QEMU's migration thread does: logging on, GET_DIRTY_LOG, CLEAR_DIRTY_LOG by 1 GiB, bytes on a
 * socket; after SECONDS the clock is read, the last round made, the clock read again and the state sent, and the
 * process ends. Pages become dirty by KVM's own writes (MSR_KVM_WALL_CLOCK_NEW). Prints "done N" at the end: how
 * many ended well.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ULL
#define GIB (1ULL << 30)
#define LOW 0x100000ULL		/* the guest's code; the large slot begins at 4 GiB */
#define HIGH (4 * GIB)
#define DIRTY_PAGES 200
#define CHUNK (64 * 1024)
#define SEND_EVERY_US 20000

static unsigned long long slot_bytes;
static long round_ms, seconds;

struct vm {
	int kvm, fd, vcpu, out;
	volatile int stop;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void region(struct vm *vm, unsigned slot, unsigned flags, unsigned long long gpa,
		   unsigned long long size, void *at)
{
	struct kvm_userspace_memory_region r = { .slot = slot, .flags = flags, .guest_phys_addr = gpa,
						 .memory_size = size, .userspace_addr = (unsigned long)at };

	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
		fail("KVM_SET_USER_MEMORY_REGION");
}

static void *map(unsigned long long size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		fail("mmap");
	return at;
}

/* `code` at 0x1000 in real mode; an interrupt controller in the kernel, so that HLT waits there. */
static void make(struct vm *vm, const void *code, size_t length)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	void *low = map(LOW);

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		fail("/dev/kvm");
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		fail("KVM_CREATE_VM");
	memcpy((char *)low + 0x1000, code, length);
	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000UL) < 0 || ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
		fail("KVM_CREATE_IRQCHIP");
	region(vm, 0, 0, 0, LOW, low);
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	if (vm->vcpu < 0)
		fail("KVM_CREATE_VCPU");
	if (mmap(NULL, ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu,
		 0) == MAP_FAILED)
		fail("mmap");
	ioctl(vm->vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	ioctl(vm->vcpu, KVM_SET_SREGS, &sregs);
	if (ioctl(vm->vcpu, KVM_SET_REGS, &regs) < 0)
		fail("KVM_SET_REGS");
}

/* An exit to user space every 100 ms, as a device model's timer makes one. */
static void *run_vcpu(void *arg)
{
	struct vm *vm = arg;

	while (!vm->stop) {
		if (ioctl(vm->vcpu, KVM_RUN, 0) < 0)
			fail("KVM_RUN");
		usleep(100000);
	}
	return NULL;
}

static void *drain(void *arg)
{
	static char buffer[1 << 20];

	while (read((int)(long)arg, buffer, sizeof(buffer)) > 0)
		;
	return NULL;
}

static void send_for(struct vm *vm, long ms)
{
	static char bytes[CHUNK];

	for (long sent = 0; sent < ms * 1000; sent += SEND_EVERY_US) {
		if (write(vm->out, bytes, sizeof(bytes)) < 0)
			fail("write");
		usleep(SEND_EVERY_US);
	}
}

static void dirty_some(struct vm *vm, unsigned *seed)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = { .head.nmsrs = 1 };

	msr.entry.index = 0x4b564d00;
	for (int i = 0; i < DIRTY_PAGES; i++) {
		msr.entry.data = HIGH + rand_r(seed) % (slot_bytes / PAGE) * PAGE;
		if (ioctl(vm->vcpu, KVM_SET_MSRS, &msr) != 1)
			fail("KVM_SET_MSRS");
	}
}

/* One sync: the log is read, and what it has is cleared in parts of 1 GiB. */
static void sync_log(struct vm *vm, void *bitmap)
{
	struct kvm_dirty_log get = { .slot = 1, .dirty_bitmap = bitmap };

	if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get) < 0)
		fail("KVM_GET_DIRTY_LOG");
	for (unsigned long long first = 0; first < slot_bytes / PAGE; first += GIB / PAGE) {
		struct kvm_clear_dirty_log clear = { .slot = 1, .first_page = first, .num_pages = GIB / PAGE,
						     .dirty_bitmap = (char *)bitmap + first / 8 };

		if (ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear) < 0)
			fail("KVM_CLEAR_DIRTY_LOG");
	}
}

static void read_clock(struct vm *vm)
{
	struct kvm_clock_data clock;

	if (ioctl(vm->fd, KVM_GET_CLOCK, &clock) < 0)
		fail("KVM_GET_CLOCK");
}

static void *migrate(void *arg)
{
	struct vm *vm = arg;
	void *high = map(slot_bytes), *bitmap = map(slot_bytes / PAGE / 8);
	unsigned seed = getpid();

	region(vm, 1, 0, HIGH, slot_bytes, high);
	region(vm, 1, KVM_MEM_LOG_DIRTY_PAGES, HIGH, slot_bytes, high);
	for (long ms = 0; ms < seconds * 1000; ms += round_ms) {
		sync_log(vm, bitmap);
		dirty_some(vm, &seed);
		send_for(vm, round_ms);
	}
	vm->stop = 1;
	read_clock(vm);
	sync_log(vm, bitmap);
	read_clock(vm);
	send_for(vm, 20);
	return NULL;
}

static void migrating(int ready, int go)
{
	/* mov dx, 0x80; out dx, al; jmp to the out */
	static const unsigned char code[] = { 0xba, 0x80, 0x00, 0xee, 0xeb, 0xfd };
	struct kvm_enable_cap protect = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 3 } };
	struct vm vm = { 0 };
	pthread_t vcpu, sink, thread;
	int ends[2];
	char byte = 0;

	make(&vm, code, sizeof(code));
	if (ioctl(vm.fd, KVM_ENABLE_CAP, &protect) < 0)
		fail("KVM_ENABLE_CAP");
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
		fail("socketpair");
	vm.out = ends[0];
	pthread_create(&sink, NULL, drain, (void *)(long)ends[1]);
	pthread_create(&vcpu, NULL, run_vcpu, &vm);
	if (write(ready, &byte, 1) != 1 || read(go, &byte, 1) < 0)
		fail("pipe");
	pthread_create(&thread, NULL, migrate, &vm);
	pthread_join(thread, NULL);
	exit(0);
}

static void idle(int ready)
{
	static const unsigned char code[] = { 0xf4, 0xeb, 0xfd };	/* hlt; jmp to it */
	struct vm vm = { 0 };
	char byte = 0;

	make(&vm, code, sizeof(code));
	if (write(ready, &byte, 1) != 1)
		fail("pipe");
	for (;;)
		ioctl(vm.vcpu, KVM_RUN, 0);
}

int main(int argc, char **argv)
{
	struct rlimit files = { 65536, 65536 };
	int ready[2], go[2], status, well = 0, first = 0, count, rest;
	pid_t *pids;
	char byte;

	if (argc != 6)
		return 2;
	count = atoi(argv[1]);
	rest = atoi(argv[2]);
	slot_bytes = strtoull(argv[3], NULL, 10) * GIB;
	round_ms = atol(argv[4]);
	seconds = atol(argv[5]);
	setrlimit(RLIMIT_NOFILE, &files);
	pids = calloc(count + rest, sizeof(*pids));
	if (!pids || pipe(ready) < 0 || pipe(go) < 0)
		fail("pipe");
	for (int i = 0; i < count + rest; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			fail("fork");
		if (pids[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(go[1]);
			if (i < count)
				migrating(ready[1], go[0]);
			idle(ready[1]);
		}
	}
	for (int i = 0; i < count + rest; i++)
		if (read(ready[0], &byte, 1) != 1)
			fail("ready");
	puts("ready");
	fflush(stdout);
	if (read(0, &byte, 1) < 0)
		fail("stdin");
	close(go[1]);
	for (first = 0; first < count; first++)
		if (waitpid(pids[first], &status, 0) == pids[first] && status == 0)
			well++;
	printf("done %d\n", well);
	fflush(stdout);
	if (read(0, &byte, 1) < 0)
		fail("stdin");
	for (int i = count; i < count + rest; i++)
		kill(pids[i], SIGKILL);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/* VMs that make the requests of a migrating VMM, and idle ones, for fleet.py:
 *
 *     fleet MIGRATING IDLE GIB ROUND_MS SECONDS [truth | sums]
 *
 * With `truth` each dirty sync is printed: pid and CLOCK_BOOTTIME in ns when it had returned (tests/crash.py). With
 * `sums` each migration has a destination, a VM of a process of its own, and two lines are printed for it: "moved", pid,
 * CLOCK_BOOTTIME in ns before its vCPU was stopped, after its clock was read and when its vCPU had left KVM_RUN, the
 * number of dirty syncs, and the bytes it sent; "resumed", the same pid, and CLOCK_BOOTTIME before the destination's
 * first KVM_RUN and after it, in which the guest has made one exit.
 * Prints "ready" when all VMs run, and begins all migrations when a byte comes on standard input, spread over the
 * first round: the dirty syncs of real ones do not fall into the same millisecond. Each is one thread that does what
 * QEMU's migration thread does: logging on, GET_DIRTY_LOG, CLEAR_DIRTY_LOG by 1 GiB, bytes on a socket; after
 * SECONDS the vCPU is stopped, the clock read, the last round made, the clock read again and the state sent, and the
 * process ends. Its rate is that of 200 migrations that share a fast network card, and in a round of 3 s as many pages
 * become dirty as are sent, so it does not converge. The vCPU halts inside KVM_RUN and comes out when it is kicked.
 * Pages become dirty by KVM's own writes (MSR_KVM_WALL_CLOCK_NEW). Prints "done N" at the end, how many ended well,
 * and the CPU time in seconds that the migrating VMs took, with their start.
 */
#define _GNU_SOURCE
#include <errno.h>
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
#define DIRTY_PAGES 1000
#define MSRS 250		/* KVM takes fewer than 256 at once */
#define CHUNK (128 * 1024)
#define SEND_EVERY_US 100000

static const unsigned char halts[] = { 0xf4, 0xeb, 0xfd };	/* hlt; jmp to it */
static const unsigned char resumes[] = { 0xe6, 0x80, 0xf4, 0xeb, 0xfd };	/* out to port 0x80; the same */
static unsigned long long slot_bytes;
static long round_ms, seconds;
static int truth, sums;

struct vm {
	int kvm, fd, vcpu, out;
	long begins_ms;
	unsigned seed;
	pthread_t runs;
	volatile int stop, dirties;
	int syncs;
	long long sent, left_ns;
};

/* The end of what is sent: what the destination has to know. */
struct tail {
	pid_t pid;
	struct kvm_clock_data clock;
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

static void dirty_some(struct vm *vm)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry entry[MSRS]; } msrs = { .head.nmsrs = MSRS };

	/* The same pages again, as a working set: fresh ones would cost the host a page each. */
	vm->seed = getpid();
	for (int done = 0; done < DIRTY_PAGES; done += MSRS) {
		for (int i = 0; i < MSRS; i++) {
			msrs.entry[i].index = 0x4b564d00;
			msrs.entry[i].data = HIGH + rand_r(&vm->seed) % (slot_bytes / PAGE) * PAGE;
		}
		if (ioctl(vm->vcpu, KVM_SET_MSRS, &msrs) != MSRS)
			fail("KVM_SET_MSRS");
	}
}

static void kicked(int number)
{
	(void)number;
}

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Only this thread may write to the vCPU: KVM_RUN holds its lock. */
static void *run_vcpu(void *arg)
{
	struct vm *vm = arg;

	while (!vm->stop) {
		if (ioctl(vm->vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
			fail("KVM_RUN");
		vm->left_ns = now_ns();
		if (vm->dirties) {
			vm->dirties = 0;
			dirty_some(vm);
		}
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
		ssize_t done = write(vm->out, bytes, sizeof(bytes));

		if (done < 0)
			fail("write");
		vm->sent += done;
		usleep(SEND_EVERY_US);
	}
}

/* One sync: the log is read, and what it has is cleared in parts of 1 GiB. */
static void sync_log(struct vm *vm, void *bitmap)
{
	struct kvm_dirty_log get = { .slot = 1, .dirty_bitmap = bitmap };

	if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &get) < 0)
		fail("KVM_GET_DIRTY_LOG");
	vm->syncs++;
	if (truth)
		dprintf(1, "sync %d %lld\n", getpid(), now_ns());
	for (unsigned long long first = 0; first < slot_bytes / PAGE; first += GIB / PAGE) {
		struct kvm_clear_dirty_log clear = { .slot = 1, .first_page = first, .num_pages = GIB / PAGE,
						     .dirty_bitmap = (char *)bitmap + first / 8 };

		if (ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &clear) < 0)
			fail("KVM_CLEAR_DIRTY_LOG");
	}
}

static struct kvm_clock_data read_clock(struct vm *vm)
{
	struct kvm_clock_data clock;

	if (ioctl(vm->fd, KVM_GET_CLOCK, &clock) < 0)
		fail("KVM_GET_CLOCK");
	return clock;
}

static void *migrate(void *arg)
{
	struct vm *vm = arg;
	struct tail tail = { .pid = getpid() };
	long long from_ns, until_ns;
	char byte;
	void *high = map(slot_bytes), *bitmap = map(slot_bytes / PAGE / 8);

	usleep(vm->begins_ms * 1000);
	region(vm, 1, 0, HIGH, slot_bytes, high);
	region(vm, 1, KVM_MEM_LOG_DIRTY_PAGES, HIGH, slot_bytes, high);
	for (long ms = 0; ms < seconds * 1000; ms += round_ms) {
		sync_log(vm, bitmap);
		vm->dirties = 1;
		pthread_kill(vm->runs, SIGUSR1);
		send_for(vm, round_ms);
	}
	from_ns = now_ns();
	vm->stop = 1;
	/* again where it came just before KVM_RUN */
	while (pthread_tryjoin_np(vm->runs, NULL)) {
		pthread_kill(vm->runs, SIGUSR1);
		usleep(1000);
	}
	read_clock(vm);
	until_ns = now_ns();
	sync_log(vm, bitmap);
	tail.clock = read_clock(vm);
	send_for(vm, 20);
	if (!sums)
		return NULL;
	if (write(vm->out, &tail, sizeof(tail)) != sizeof(tail))
		fail("write");
	vm->sent += sizeof(tail);
	/* The source lives until its destination has the guest, as QEMU does with a return path. */
	if (shutdown(vm->out, SHUT_WR) < 0 || read(vm->out, &byte, 1) != 1)
		fail("shutdown");
	dprintf(1, "moved %d %lld %lld %lld %d %lld\n", getpid(), from_ns, until_ns, vm->left_ns, vm->syncs, vm->sent);
	return NULL;
}

/* `out`: the socket to its destination; negative where it has none. */
static void migrating(int ready, int go, int out, long begins_ms)
{
	struct kvm_enable_cap protect = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { 3 } };
	struct sigaction kick = { .sa_handler = kicked };
	struct vm vm = { .begins_ms = begins_ms };
	pthread_t sink, thread;
	int ends[2];
	char byte = 0;

	sigaction(SIGUSR1, &kick, NULL);
	make(&vm, halts, sizeof(halts));
	if (ioctl(vm.fd, KVM_ENABLE_CAP, &protect) < 0)
		fail("KVM_ENABLE_CAP");
	vm.out = out;
	if (out < 0) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
			fail("socketpair");
		vm.out = ends[0];
		pthread_create(&sink, NULL, drain, (void *)(long)ends[1]);
	}
	pthread_create(&vm.runs, NULL, run_vcpu, &vm);
	if (write(ready, &byte, 1) != 1 || read(go, &byte, 1) < 0)
		fail("pipe");
	pthread_create(&thread, NULL, migrate, &vm);
	pthread_join(thread, NULL);
	exit(0);
}

/* Reads what the source sends; at its end sets the source's clock, as QEMU does, and runs the guest. */
static void arriving(int ready, int in)
{
	static char buffer[1 << 20];
	struct tail tail;
	struct vm vm = { 0 };
	size_t have = 0;
	long long before_ns, after_ns;
	ssize_t got;
	char byte = 0;

	make(&vm, resumes, sizeof(resumes));
	if (write(ready, &byte, 1) != 1)
		fail("pipe");
	/* The last bytes stay at the beginning of the buffer. */
	while ((got = read(in, buffer + have, sizeof(buffer) - have)) > 0) {
		size_t all = have + got;

		have = all < sizeof(tail) ? all : sizeof(tail);
		memmove(buffer, buffer + all - have, have);
	}
	if (got < 0 || have != sizeof(tail))
		fail("read");
	memcpy(&tail, buffer, sizeof(tail));
	tail.clock.flags = 0;
	if (ioctl(vm.fd, KVM_SET_CLOCK, &tail.clock) < 0)
		fail("KVM_SET_CLOCK");
	before_ns = now_ns();
	if (ioctl(vm.vcpu, KVM_RUN, 0) < 0)
		fail("KVM_RUN");
	after_ns = now_ns();
	dprintf(1, "resumed %d %lld %lld\n", tail.pid, before_ns, after_ns);
	if (write(in, &byte, 1) != 1)
		fail("write");
	for (;;)
		ioctl(vm.vcpu, KVM_RUN, 0);
}

static void idle(int ready)
{
	struct vm vm = { 0 };
	char byte = 0;

	make(&vm, halts, sizeof(halts));
	if (write(ready, &byte, 1) != 1)
		fail("pipe");
	for (;;)
		ioctl(vm.vcpu, KVM_RUN, 0);
}

static double cpu_seconds(const struct rusage *r)
{
	return r->ru_utime.tv_sec + r->ru_stime.tv_sec + (r->ru_utime.tv_usec + r->ru_stime.tv_usec) / 1e6;
}

/* Waits until so many VMs have said that they run. */
static void await(int ready, int count)
{
	char byte;

	for (int i = 0; i < count; i++)
		if (read(ready, &byte, 1) != 1)
			fail("ready");
}

int main(int argc, char **argv)
{
	struct rusage after;
	struct rlimit files = { 65536, 65536 };
	int ready[2], go[2], status, well = 0, first = 0, count, rest, arrive;
	int (*channels)[2];
	pid_t *pids;
	char byte;

	if (argc != 6 && argc != 7)
		return 2;
	truth = argc == 7 && !strcmp(argv[6], "truth");
	sums = argc == 7 && !strcmp(argv[6], "sums");
	count = atoi(argv[1]);
	rest = atoi(argv[2]);
	slot_bytes = strtoull(argv[3], NULL, 10) * GIB;
	round_ms = atol(argv[4]);
	seconds = atol(argv[5]);
	setrlimit(RLIMIT_NOFILE, &files);
	arrive = sums ? count : 0;
	rest += arrive;
	pids = calloc(count + rest, sizeof(*pids));
	channels = calloc(arrive + 1, sizeof(*channels));
	if (!pids || !channels || pipe(ready) < 0 || pipe(go) < 0)
		fail("pipe");
	for (int i = 0; i < arrive; i++)
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channels[i]) < 0)
			fail("socketpair");
	/* The destinations last: KVM's clock begins with a VM, and a destination's is younger than its source's. */
	for (int i = 0; i < count + rest; i++) {
		int to = i - (count + rest - arrive);

		if (to == 0)
			await(ready[0], i);
		pids[i] = fork();
		if (pids[i] < 0)
			fail("fork");
		if (pids[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(go[1]);
			/* An end that another process has open would not end. */
			for (int j = 0; j < arrive; j++) {
				if (j != i)
					close(channels[j][0]);
				if (j != to)
					close(channels[j][1]);
			}
			if (i < count)
				migrating(ready[1], go[0], i < arrive ? channels[i][0] : -1, round_ms * i / count);
			if (to >= 0)
				arriving(ready[1], channels[to][1]);
			idle(ready[1]);
		}
	}
	for (int i = 0; i < arrive; i++) {
		close(channels[i][0]);
		close(channels[i][1]);
	}
	await(ready[0], arrive ? arrive : count + rest);
	puts("ready");
	fflush(stdout);
	if (read(0, &byte, 1) < 0)
		fail("stdin");
	close(go[1]);
	for (first = 0; first < count; first++)
		if (waitpid(pids[first], &status, 0) == pids[first] && status == 0)
			well++;
	getrusage(RUSAGE_CHILDREN, &after);
	printf("done %d, %.1f s\n", well, cpu_seconds(&after));
	fflush(stdout);
	if (read(0, &byte, 1) < 0)
		fail("stdin");
	for (int i = count; i < count + rest; i++)
		kill(pids[i], SIGKILL);
	return 0;
}

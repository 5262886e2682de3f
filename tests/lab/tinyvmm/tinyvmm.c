// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * tinyvmm - a VMM that migrates as it is told, one act a line
 *
 * Part of vftrace's tests. It makes the KVM and VFIO requests of a live migration in whatever order
 * the lines on standard input ask for, also in orders QEMU never takes, and answers each line with
 * one line of JSON: what was done, when it began and ended (CLOCK_BOOTTIME in ns), and what came of
 * it, by its own account. That is the truth a tracer is held against. It shares nothing with QEMU:
 * its command line says neither who it is nor that it waits for a migration, and it makes other
 * requests in another order, from a thread that obeys, one that runs the vCPU and one that answers.
 *
 *   tinyvmm MEMORY_MIB PROTECT    PROTECT: args[0] of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0 for without
 *
 * The guest writes one word to each of some pages from 128 KiB on, without end.
 *
 *   pages N                  to so many from now on (1 to 223)
 *   run | stop               the vCPU; stop reads the clock, as a VMM does at the end of precopy
 *   listen PORT | accept | connect PORT      the migration channel, on 127.0.0.1; @NAME for a unix socket
 *   log on|off               dirty logging of all memory
 *   copy                     send all of memory, whatever the log says
 *   round [LIMIT]            one sweep: read the log; clear and send at most LIMIT of the pages it owes;
 *                            without a channel nothing is sent
 *   save                     read clock and vCPU, send both after all pages that are still owed
 *   snapshot | send          the same in two: read the vCPU; send it with the clock that stop has read
 *   share | adopt            pass on all memory as a file descriptor; take what the other side passes
 *   receive                  write what comes into memory until the vCPU's state has come
 *   load                     set the vCPU's state and the clock
 *   open NAME | close        a VFIO device, by PCI address or mdev UUID, with all memory mapped for it
 *   map IOVA SIZE | unmap IOVA SIZE [dirty]  `dirty`: also get the bitmap of what is unmapped
 *   track on|off | dirty IOVA SIZE           dirty pages of the container (type1)
 *   dma on|off | report IOVA SIZE            the device's own DMA logging
 *   state NUMBER             VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
 *   cdev NAME                a VFIO device by its own file: bound to an iommufd that has all memory mapped, and
 *                            attached to a page table that tracks if its IOMMU can; further devices share both
 *   bind                     ask once more to bind the device opened last
 *   iomap IOVA SIZE [file] | iounmap IOVA SIZE | iocopy IOVA SIZE TO   memory from its begin on; a second address
 *   hwpt on|off | written IOVA SIZE [PAGE_SIZE [keep]]   dirty pages of that page table; `keep`: NO_CLEAR
 *   done                     close the iommufd and what is bound to it; `close` closes one device
 *   peek OFFSET | poke OFFSET VALUE          a register of its first BAR, 32 bits
 *   reset | hot-reset        the device alone, or all that its bus resets; the latter also asks how many
 *
 * A request that fails is an answer too: `ret` is 0, or the negative errno. What makes no sense ends
 * the program with a message.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "iommufd.h"

#define PAGE 4096ULL
#define CODE 0x1000
#define FIRST_SEGMENT 0x2000
#define LIMIT_AT (CODE + 14)
#define MOST_PAGES 223
#define BATCH 16

struct message {
	uint32_t type; /* PAGES or STATE */
	uint32_t count;
};
enum { PAGES = 1, STATE = 2 };

struct page {
	uint64_t number;
	uint8_t data[PAGE];
};

struct state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint64_t clock;
};

static uint8_t *memory;
static uint64_t memory_bytes, pages;
static uint64_t *got, *owed; /* bitmaps: the latest log; pages to send that KVM still holds as dirty */
static bool manual;
static int vm, vcpu, channel = -1, listener = -1, memory_fd;
static struct kvm_run *run;
static pthread_t runner;
static bool running;
static uint64_t last_exit_ns, first_entry_ns;
static struct state state;
static int container = -1, group = -1, device = -1;

#define MOST_CDEVS 4
static int iommu = -1, cdevs[MOST_CDEVS], cdev_count;
static uint32_t ioas, hwpt;

static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "tinyvmm: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\n");
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

/* A request that has to work. */
static int must(int fd, unsigned long request, void *argument, const char *what)
{
	int ret = ioctl(fd, request, argument);

	if (ret < 0)
		die("%s: %s", what, strerror(errno));
	return ret;
}

/* One that may fail: 0 or more, or the negative errno. */
static int ask(int fd, unsigned long request, void *argument)
{
	int ret = ioctl(fd, request, argument);

	return ret < 0 ? -errno : ret;
}

/* Answers are written by the main thread: one that logs memory and writes to a pipe migrates. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	char text[1024];
	bool ended;
} outbox = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

/* The answer to a line: times, then what `format` adds. Returns once it is written. */
static void answer(const char *what, uint64_t begun_ns, const char *format, ...)
{
	uint64_t done_ns = now_ns();
	va_list arguments;
	int n;

	pthread_mutex_lock(&outbox.lock);
	n = snprintf(outbox.text, sizeof(outbox.text),
		     "{\"what\": \"%s\", \"at_ns\": %" PRIu64 ", \"done_at_ns\": %" PRIu64, what,
		     begun_ns, done_ns);
	va_start(arguments, format);
	vsnprintf(outbox.text + n, sizeof(outbox.text) - n, format, arguments);
	va_end(arguments);
	pthread_cond_broadcast(&outbox.changed);
	while (*outbox.text)
		pthread_cond_wait(&outbox.changed, &outbox.lock);
	pthread_mutex_unlock(&outbox.lock);
}

static void write_answers(void)
{
	pthread_mutex_lock(&outbox.lock);
	while (!outbox.ended) {
		if (*outbox.text) {
			printf("%s}\n", outbox.text);
			fflush(stdout);
			*outbox.text = 0;
			pthread_cond_broadcast(&outbox.changed);
		}
		if (!outbox.ended)
			pthread_cond_wait(&outbox.changed, &outbox.lock);
	}
	pthread_mutex_unlock(&outbox.lock);
}

static bool bit(const uint64_t *bitmap, uint64_t number)
{
	return bitmap[number / 64] >> number % 64 & 1;
}

static uint64_t count(const uint64_t *bitmap, uint64_t bits)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < (bits + 63) / 64; i++)
		n += __builtin_popcountll(bitmap[i]);
	return n;
}

static uint64_t *bitmap_of(uint64_t bits)
{
	uint64_t *bitmap = calloc((bits + 63) / 64, 8);

	if (!bitmap)
		die("out of memory");
	return bitmap;
}

/* -- the guest ------------------------------------------------------------------------------ */

static void set_pages(uint64_t n)
{
	uint16_t limit = FIRST_SEGMENT + (n << 8);

	if (n < 1 || n > MOST_PAGES)
		die("pages: 1 to %d", MOST_PAGES);
	memcpy(memory + LIMIT_AT, &limit, 2);
}

static void write_guest(void)
{
	static const uint8_t code[] = {
		0xb8, FIRST_SEGMENT & 0xff, FIRST_SEGMENT >> 8, /* 0:  mov ax, first segment */
		0x8e, 0xc0,                                     /* 3:  mov es, ax */
		0x26, 0xff, 0x06, 0x00, 0x00,                   /* 5:  inc word es:[0] */
		0x05, 0x00, 0x01,                               /* 10: add ax, one page */
		0x3d, 0x00, 0x00,                               /* 13: cmp ax, limit */
		0x72, 0xf1,                                     /* 16: jb 3 */
		0xeb, 0xec,                                     /* 18: jmp 0 */
	};

	memcpy(memory + CODE, code, sizeof(code));
	set_pages(64);
}

static void set_region(uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.flags = flags, .memory_size = memory_bytes, .userspace_addr = (uintptr_t)memory,
	};

	must(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
}

static void make_vm(uint64_t mib, uint64_t protect)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { protect },
	};
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct kvm_sregs sregs;

	if (kvm < 0)
		die("/dev/kvm: %s", strerror(errno));
	memory_bytes = mib << 20;
	pages = memory_bytes / PAGE;
	got = bitmap_of(pages);
	owed = bitmap_of(pages);
	memory_fd = memfd_create("memory", MFD_CLOEXEC);
	if (memory_fd < 0 || ftruncate(memory_fd, memory_bytes))
		die("memory: %s", strerror(errno));
	memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		      memory_fd, 0);
	if (memory == MAP_FAILED)
		die("memory: %s", strerror(errno));
	write_guest();
	vm = must(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
	manual = protect;
	if (manual)
		must(vm, KVM_ENABLE_CAP, &cap, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	set_region(0);
	vcpu = must(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
	run = mmap(NULL, must(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE"),
		   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("kvm_run: %s", strerror(errno));
	must(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	must(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
	must(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

static void *run_vcpu(void *unused)
{
	first_entry_ns = now_ns();
	while (!run->immediate_exit) {
		int ret = ioctl(vcpu, KVM_RUN, 0);

		if (ret < 0 && errno != EINTR && errno != EAGAIN)
			die("KVM_RUN: %s", strerror(errno));
		if (ret == 0 && run->exit_reason != KVM_EXIT_INTR)
			die("the guest left with %u", run->exit_reason);
	}
	last_exit_ns = now_ns();
	return unused;
}

static void start_vcpu(void)
{
	if (running)
		die("it runs already");
	run->immediate_exit = 0;
	first_entry_ns = 0;
	if (pthread_create(&runner, NULL, run_vcpu, NULL))
		die("no thread");
	running = true;
}

static void kick(int number)
{
	(void)number;
}

static uint64_t read_clock(void)
{
	struct kvm_clock_data clock = {};

	must(vm, KVM_GET_CLOCK, &clock, "KVM_GET_CLOCK");
	return clock.clock;
}

static void stop_vcpu(uint64_t at)
{
	if (!running)
		die("it does not run");
	run->immediate_exit = 1;
	pthread_kill(runner, SIGUSR1);
	pthread_join(runner, NULL);
	running = false;
	state.clock = read_clock();
	answer("stop", at, ", \"last_exit_ns\": %" PRIu64 ", \"clock\": %" PRIu64, last_exit_ns,
	       (uint64_t)state.clock);
}

/* -- the channel ---------------------------------------------------------------------------- */

union address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_un un;
};

/* A socket for PORT or @NAME, and the address to bind or to connect to. */
static int new_socket(const char *where, union address *address, socklen_t *size)
{
	bool local = *where == '@';
	int fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	*address = (union address){};
	if (local) {
		/* Linux's abstract names begin with a zero and have no end but their length. */
		address->un.sun_family = AF_UNIX;
		memcpy(address->un.sun_path + 1, where + 1, strlen(where + 1));
		*size = offsetof(struct sockaddr_un, sun_path) + strlen(where);
	} else {
		address->in = (struct sockaddr_in){
			.sin_family = AF_INET, .sin_port = htons(strtoul(where, NULL, 0)),
			.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		};
		*size = sizeof(address->in);
	}
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		die("socket: %s", strerror(errno));
	return fd;
}

static void send_all(const void *data, size_t size)
{
	while (size) {
		ssize_t n = send(channel, data, size, MSG_NOSIGNAL);

		if (n < 0)
			die("send: %s", strerror(errno));
		data = (const char *)data + n;
		size -= n;
	}
}

static void receive_all(void *data, size_t size)
{
	while (size) {
		ssize_t n = recv(channel, data, size, 0);

		if (n <= 0)
			die("receive: %s", n ? strerror(errno) : "the other side is gone");
		data = (char *)data + n;
		size -= n;
	}
}

static struct {
	struct message head;
	struct page pages[BATCH];
} batch = { .head.type = PAGES };

static uint64_t send_batch(void)
{
	size_t size = sizeof(batch.head) + batch.head.count * sizeof(struct page);

	if (!batch.head.count)
		return 0;
	if (channel >= 0)
		send_all(&batch, size);
	else
		size = 0;
	batch.head.count = 0;
	return size;
}

/* The bytes that had to be sent now. */
static uint64_t send_page(uint64_t number)
{
	struct page *page = &batch.pages[batch.head.count++];

	page->number = number;
	memcpy(page->data, memory + number * PAGE, PAGE);
	return batch.head.count == BATCH ? send_batch() : 0;
}

/* -- migration ------------------------------------------------------------------------------ */

static void clear_log(uint64_t *bitmap)
{
	struct kvm_clear_dirty_log clear = { .num_pages = pages, .dirty_bitmap = bitmap };

	must(vm, KVM_CLEAR_DIRTY_LOG, &clear, "KVM_CLEAR_DIRTY_LOG");
}

/* Empty pages need not be sent: the other side's memory is empty too. */
static bool is_empty(uint64_t number)
{
	const uint64_t *words = (const uint64_t *)(memory + number * PAGE);

	for (uint64_t i = 0; i < PAGE / 8; i++)
		if (words[i])
			return false;
	return true;
}

static void sweep(uint64_t at, uint64_t limit)
{
	struct kvm_dirty_log log = { .dirty_bitmap = got };
	uint64_t *clear = bitmap_of(pages), fresh = 0, sent = 0, bytes = 0, taken = 0, swept_ns;

	must(vm, KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG");
	swept_ns = now_ns();
	for (uint64_t i = 0; i < (pages + 63) / 64; i++) {
		/* Without manual protection the log begins anew with every GET. */
		fresh += __builtin_popcountll(manual ? got[i] & ~owed[i] : got[i]);
		owed[i] |= got[i];
	}
	for (uint64_t i = 0; i < pages && taken < limit; i++)
		if (bit(owed, i)) {
			clear[i / 64] |= 1ULL << i % 64;
			taken++;
		}
	/* Cleared first, then read: what the guest writes meanwhile is in the next log. */
	if (manual && taken)
		clear_log(clear);
	for (uint64_t i = 0; i < pages; i++)
		if (bit(clear, i) && !is_empty(i)) {
			bytes += send_page(i);
			sent++;
		}
	bytes += send_batch();
	for (uint64_t i = 0; i < (pages + 63) / 64; i++)
		owed[i] &= ~clear[i];
	free(clear);
	answer("round", at,
	       ", \"swept_at_ns\": %" PRIu64 ", \"new_pages\": %" PRIu64 ", \"logged_pages\": %" PRIu64
	       ", \"cleared\": %" PRIu64 ", \"sent_pages\": %" PRIu64 ", \"sent_bytes\": %" PRIu64,
	       swept_ns, fresh, count(got, pages), taken, sent, bytes);
}

static void copy(uint64_t at)
{
	uint64_t sent = 0, bytes = 0;

	for (uint64_t i = 0; i < pages; i++)
		if (!is_empty(i)) {
			bytes += send_page(i);
			sent++;
		}
	bytes += send_batch();
	answer("copy", at, ", \"sent_pages\": %" PRIu64 ", \"sent_bytes\": %" PRIu64, sent, bytes);
}

static void read_vcpu(void)
{
	must(vcpu, KVM_GET_REGS, &state.regs, "KVM_GET_REGS");
	must(vcpu, KVM_GET_SREGS, &state.sregs, "KVM_GET_SREGS");
}

/* The bytes that were sent. */
static uint64_t send_state(void)
{
	struct message head = { .type = STATE };

	send_all(&head, sizeof(head));
	send_all(&state, sizeof(state));
	return sizeof(head) + sizeof(state);
}

static void save(uint64_t at)
{
	uint64_t sent = 0;

	for (uint64_t i = 0; i < pages; i++)
		if (bit(owed, i) && !is_empty(i))
			sent += send_page(i);
	sent += send_batch();
	state.clock = read_clock();
	read_vcpu();
	sent += send_state();
	answer("save", at, ", \"clock\": %" PRIu64 ", \"sent_bytes\": %" PRIu64, (uint64_t)state.clock,
	       sent);
}

/* The memory itself is passed on, as Cloud Hypervisor does with send-migration --local. */
static void share(uint64_t at)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte = 0;
	struct iovec part = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &memory_fd, sizeof(int));
	if (sendmsg(channel, &message, MSG_NOSIGNAL) != 1)
		die("share: %s", strerror(errno));
	answer("share", at, ", \"sent_bytes\": 1");
}

static void adopt(uint64_t at)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte;
	struct iovec part = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *head;
	void *there;

	if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) != 1)
		die("adopt: %s", strerror(errno));
	head = CMSG_FIRSTHDR(&message);
	if (!head || head->cmsg_type != SCM_RIGHTS)
		die("adopt: no memory came");
	memcpy(&memory_fd, CMSG_DATA(head), sizeof(int));
	/* In the same place: the memslot stays as it is. */
	there = mmap(memory, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory_fd, 0);
	if (there != (void *)memory)
		die("adopt: %s", strerror(errno));
	answer("adopt", at, "");
}

static void receive(uint64_t at)
{
	uint64_t received = 0;
	struct message head;
	static struct page page;

	for (;;) {
		receive_all(&head, sizeof(head));
		if (head.type == STATE)
			break;
		for (uint32_t i = 0; i < head.count; i++, received++) {
			receive_all(&page, sizeof(page));
			if (page.number >= pages)
				die("receive: no page %" PRIu64, page.number);
			memcpy(memory + page.number * PAGE, page.data, PAGE);
		}
	}
	receive_all(&state, sizeof(state));
	answer("receive", at, ", \"pages\": %" PRIu64, received);
}

static void load(uint64_t at)
{
	struct kvm_clock_data clock = { .clock = state.clock };
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };

	must(vcpu, KVM_SET_SREGS, &state.sregs, "KVM_SET_SREGS");
	must(vcpu, KVM_SET_REGS, &state.regs, "KVM_SET_REGS");
	must(vcpu, KVM_SET_MP_STATE, &runnable, "KVM_SET_MP_STATE");
	must(vm, KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK");
	ask(vcpu, KVM_KVMCLOCK_CTRL, 0); /* refused where the guest has no kvmclock */
	answer("load", at, ", \"clock\": %" PRIu64, state.clock);
}

/* -- VFIO ----------------------------------------------------------------------------------- */

static int map_dma(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory + iova, .iova = iova, .size = size,
	};

	if (iova + size > memory_bytes)
		die("map: no such memory");
	return ask(container, VFIO_IOMMU_MAP_DMA, &map);
}

/* `dirty`: also the bitmap of the pages that devices wrote to, and how many. */
static int unmap_dma(uint64_t iova, uint64_t size, uint64_t *dirty)
{
	struct {
		struct vfio_iommu_type1_dma_unmap unmap;
		struct vfio_bitmap bitmap;
	} unmap = { .unmap = { .argsz = sizeof(unmap.unmap), .iova = iova, .size = size } };
	uint64_t *bitmap;
	int ret;

	if (!dirty)
		return ask(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
	bitmap = bitmap_of(size / PAGE);
	unmap.unmap.argsz = sizeof(unmap);
	unmap.unmap.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
	unmap.bitmap.pgsize = PAGE;
	unmap.bitmap.size = (size / PAGE + 63) / 64 * 8;
	unmap.bitmap.data = (void *)bitmap;
	ret = ask(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
	*dirty = count(bitmap, size / PAGE);
	free(bitmap);
	return ret;
}

static int track(bool on)
{
	struct vfio_iommu_type1_dirty_bitmap dirty = {
		.argsz = sizeof(dirty),
		.flags = on ? VFIO_IOMMU_DIRTY_PAGES_FLAG_START : VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
	};

	return ask(container, VFIO_IOMMU_DIRTY_PAGES, &dirty);
}

static int dirty_pages(uint64_t iova, uint64_t size, uint64_t *dirty)
{
	struct {
		struct vfio_iommu_type1_dirty_bitmap head;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} get = {
		.head = { .argsz = sizeof(get), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP },
		.get = { .iova = iova, .size = size, .bitmap = {
			.pgsize = PAGE, .size = (size / PAGE + 63) / 64 * 8,
		} },
	};
	uint64_t *bitmap = bitmap_of(size / PAGE);
	int ret;

	get.get.bitmap.data = (void *)bitmap;
	ret = ask(container, VFIO_IOMMU_DIRTY_PAGES, &get);
	*dirty = count(bitmap, size / PAGE);
	free(bitmap);
	return ret;
}

/* A feature with its argument behind it; `data` gets what the kernel writes there. */
static int feature(uint32_t flags, void *data, size_t size)
{
	struct vfio_device_feature *feature = calloc(1, sizeof(*feature) + size);
	int ret;

	if (!feature)
		die("out of memory");
	feature->argsz = sizeof(*feature) + size;
	feature->flags = flags;
	if (size)
		memcpy(feature->data, data, size);
	ret = ask(device, VFIO_DEVICE_FEATURE, feature);
	if (size)
		memcpy(data, feature->data, size);
	free(feature);
	return ret;
}

static int log_dma(bool on)
{
	struct {
		struct vfio_device_feature_dma_logging_control control;
		struct vfio_device_feature_dma_logging_range range;
	} start = { .control = { .page_size = PAGE, .num_ranges = 1 },
		    .range = { .iova = 0, .length = memory_bytes } };

	if (!on)
		return feature(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, NULL, 0);
	start.control.ranges = (uintptr_t)&start.range;
	return feature(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &start.control,
		       sizeof(start.control));
}

static int report_dma(uint64_t iova, uint64_t size, uint64_t *dirty)
{
	struct vfio_device_feature_dma_logging_report report = {
		.iova = iova, .length = size, .page_size = PAGE,
	};
	uint64_t *bitmap = bitmap_of(size / PAGE);
	int ret;

	report.bitmap = (uintptr_t)bitmap;
	ret = feature(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &report,
		      sizeof(report));
	*dirty = count(bitmap, size / PAGE);
	free(bitmap);
	return ret;
}

static int set_state(uint32_t number, int *data_fd)
{
	struct vfio_device_feature_mig_state mig = { .device_state = number, .data_fd = -1 };
	int ret = feature(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &mig,
			  sizeof(mig));

	*data_fd = ret ? -1 : mig.data_fd;
	return ret;
}

/* `devices`: how many the reset takes, by the kernel's account; all of them have to be in the one group. */
static int hot_reset(uint32_t *devices)
{
	struct {
		struct vfio_pci_hot_reset_info head;
		struct vfio_pci_dependent_device devices[32];
	} info = { .head = { .argsz = sizeof(info) } };
	struct vfio_pci_hot_reset *reset = calloc(1, sizeof(*reset) + sizeof(int32_t));
	/* A device bound to an iommufd proves by that what it owns, and names no groups. */
	bool by_group = group >= 0;
	int ret;

	if (!reset)
		die("out of memory");
	if (!ask(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info))
		*devices = info.head.count;
	reset->argsz = sizeof(*reset) + (by_group ? sizeof(int32_t) : 0);
	reset->count = by_group;
	if (by_group)
		reset->group_fds[0] = group;
	ret = ask(device, VFIO_DEVICE_PCI_HOT_RESET, reset);
	free(reset);
	return ret;
}

/* BAR 0 is VFIO's region 0, at offset 0 of the fd (VFIO_PCI_BAR0_REGION_INDEX). */
static int peek(uint64_t offset, uint32_t *value)
{
	return pread(device, value, sizeof(*value), offset) == sizeof(*value) ? 0 : -errno;
}

static int poke(uint64_t offset, uint32_t value)
{
	return pwrite(device, &value, sizeof(value), offset) == sizeof(value) ? 0 : -errno;
}

static const char *group_of(const char *name)
{
	static char path[64], link[256], target[256];
	static const char *const buses[] = { "pci", "mdev" };

	for (unsigned i = 0; i < 2; i++) {
		ssize_t n;

		snprintf(link, sizeof(link), "/sys/bus/%s/devices/%.64s/iommu_group", buses[i], name);
		n = readlink(link, target, sizeof(target) - 1);
		if (n > 0) {
			target[n] = 0;
			snprintf(path, sizeof(path), "/dev/vfio/%.40s", basename(target));
			return path;
		}
	}
	die("open: no device %s with an IOMMU group", name);
	return NULL;
}

static void open_device(uint64_t at, const char *name)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	int ret;

	if (device >= 0 || iommu >= 0)
		die("open: one is open already");
	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	group = open(group_of(name), O_RDWR | O_CLOEXEC);
	if (container < 0 || group < 0)
		die("open: %s", strerror(errno));
	must(group, VFIO_GROUP_SET_CONTAINER, &container, "VFIO_GROUP_SET_CONTAINER");
	must(container, VFIO_SET_IOMMU, (void *)(uintptr_t)VFIO_TYPE1v2_IOMMU, "VFIO_SET_IOMMU");
	ret = map_dma(0, memory_bytes);
	if (ret)
		die("map: %s", strerror(-ret));
	device = must(group, VFIO_GROUP_GET_DEVICE_FD, (void *)name, "VFIO_GROUP_GET_DEVICE_FD");
	/* Every VMM asks what the device has. */
	must(device, VFIO_DEVICE_GET_INFO, &info, "VFIO_DEVICE_GET_INFO");
	answer("open", at, ", \"device\": \"%s\", \"fd\": %d", name, device);
}

static void close_device(uint64_t at)
{
	close(device);
	if (group >= 0) {
		close(group);
		close(container);
		device = group = container = -1;
	} else {
		cdev_count--;
		device = cdev_count ? cdevs[cdev_count - 1] : -1;
	}
	answer("close", at, "");
}

static bool is_on(const char *word)
{
	if (strcmp(word, "on") && strcmp(word, "off"))
		die("on or off, not %s", word);
	return !strcmp(word, "on");
}

/* -- iommufd -------------------------------------------------------------------------------- */

static int map_ioas(uint64_t iova, uint64_t size, bool file)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map), .flags = IOMMU_MAP_FLAGS, .ioas_id = ioas, .length = size, .iova = iova,
		.user_va = (uintptr_t)memory,
	};
	struct iommu_ioas_map_file map_file = {
		.size = sizeof(map_file), .flags = IOMMU_MAP_FLAGS, .ioas_id = ioas, .length = size, .iova = iova,
		.fd = memory_fd,
	};

	return file ? ask(iommu, IOMMU_IOAS_MAP_FILE, &map_file) : ask(iommu, IOMMU_IOAS_MAP, &map);
}

static int unmap_ioas(uint64_t iova, uint64_t size)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = ioas, .iova = iova, .length = size,
	};

	return ask(iommu, IOMMU_IOAS_UNMAP, &unmap);
}

static int copy_ioas(uint64_t iova, uint64_t size, uint64_t to)
{
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy), .flags = IOMMU_MAP_FLAGS, .dst_ioas_id = ioas, .src_ioas_id = ioas,
		.length = size, .dst_iova = to, .src_iova = iova,
	};

	return ask(iommu, IOMMU_IOAS_COPY, &copy);
}

static void open_iommu(void)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int ret;

	iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (iommu < 0)
		die("/dev/iommu: %s", strerror(errno));
	must(iommu, IOMMU_IOAS_ALLOC, &alloc, "IOMMU_IOAS_ALLOC");
	ioas = alloc.out_ioas_id;
	ret = map_ioas(0, memory_bytes, false);
	if (ret)
		die("IOMMU_IOAS_MAP: %s", strerror(-ret));
}

static const char *cdev_of(const char *name)
{
	static const char *const buses[] = { "pci", "mdev", "platform" };
	static char path[512];
	struct dirent *entry;

	for (unsigned i = 0; i < 3; i++) {
		DIR *directory;

		snprintf(path, sizeof(path), "/sys/bus/%s/devices/%.64s/vfio-dev", buses[i], name);
		directory = opendir(path);
		while (directory && (entry = readdir(directory)))
			if (!strncmp(entry->d_name, "vfio", 4)) {
				snprintf(path, sizeof(path), "/dev/vfio/devices/%.32s", entry->d_name);
				closedir(directory);
				return path;
			}
		if (directory)
			closedir(directory);
	}
	die("cdev: %s has no file of its own", name);
	return NULL;
}

static int bind_cdev(int fd, uint32_t *device_id)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommu };
	int ret = ask(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind);

	*device_id = bind.out_devid;
	return ret;
}

/* A page table for all memory, which tracks if the device's IOMMU says it can. */
static int alloc_hwpt(uint32_t device_id, uint64_t *capabilities)
{
	struct iommu_hw_info info = { .size = sizeof(info), .dev_id = device_id };
	struct iommu_hwpt_alloc alloc = { .size = sizeof(alloc), .dev_id = device_id, .pt_id = ioas };
	int ret = ask(iommu, IOMMU_GET_HW_INFO, &info);

	/* A mediated device has no IOMMU, so no page table of its own: -ENOENT. */
	if (ret)
		return ret;
	*capabilities = info.out_capabilities;
	if (*capabilities & IOMMU_HW_CAP_DIRTY_TRACKING)
		alloc.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
	ret = ask(iommu, IOMMU_HWPT_ALLOC, &alloc);
	if (!ret)
		hwpt = alloc.out_hwpt_id;
	return ret;
}

static void open_cdev(uint64_t at, const char *name)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct vfio_device_info info = { .argsz = sizeof(info) };
	const char *path = cdev_of(name);
	uint64_t capabilities = 0;
	uint32_t device_id;
	int ret, hwpt_ret = 0;

	if (cdev_count == MOST_CDEVS)
		die("cdev: %d are open already", MOST_CDEVS);
	if (iommu < 0)
		open_iommu();
	device = open(path, O_RDWR | O_CLOEXEC);
	if (device < 0)
		die("%s: %s", path, strerror(errno));
	cdevs[cdev_count++] = device;
	ret = bind_cdev(device, &device_id);
	if (ret)
		die("VFIO_DEVICE_BIND_IOMMUFD: %s", strerror(-ret));
	if (!hwpt)
		hwpt_ret = alloc_hwpt(device_id, &capabilities);
	attach.pt_id = hwpt ? hwpt : ioas;
	must(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	must(device, VFIO_DEVICE_GET_INFO, &info, "VFIO_DEVICE_GET_INFO");
	answer("cdev", at,
	       ", \"device\": \"%s\", \"path\": \"%s\", \"fd\": %d, \"capabilities\": %" PRIu64
	       ", \"hwpt_ret\": %d, \"hwpt\": %u",
	       name, path, device, capabilities, hwpt_ret, hwpt);
}

static void close_iommu(uint64_t at)
{
	while (cdev_count)
		close(cdevs[--cdev_count]);
	close(iommu);
	iommu = device = -1;
	ioas = hwpt = 0;
	answer("done", at, "");
}

static int track_hwpt(bool on)
{
	struct iommu_hwpt_set_dirty_tracking set = {
		.size = sizeof(set), .hwpt_id = hwpt, .flags = on ? IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0,
	};

	return ask(iommu, IOMMU_HWPT_SET_DIRTY_TRACKING, &set);
}

static int written(uint64_t iova, uint64_t size, uint64_t page_size, bool keep, uint64_t *dirty)
{
	uint64_t bits = size / page_size, *bitmap = bitmap_of(bits + 1);
	struct iommu_hwpt_get_dirty_bitmap get = {
		.size = sizeof(get), .hwpt_id = hwpt, .iova = iova, .length = size, .page_size = page_size,
		.flags = keep ? IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR : 0, .data = (uintptr_t)bitmap,
	};
	int ret = ask(iommu, IOMMU_HWPT_GET_DIRTY_BITMAP, &get);

	*dirty = count(bitmap, bits);
	free(bitmap);
	return ret;
}

/* False if `what` is no act of an iommufd. */
static bool obey_iommufd(const char *what, uint64_t at, char words[][64], uint64_t a, uint64_t b)
{
	uint64_t dirty = 0, c = strtoull(words[3], NULL, 0);
	uint32_t unused;
	int ret;

	if (!strcmp(what, "cdev")) {
		open_cdev(at, words[1]);
		return true;
	}
	if (iommu < 0)
		return false;
	if (!strcmp(what, "done")) {
		close_iommu(at);
		return true;
	}
	if (!strcmp(what, "bind"))
		ret = bind_cdev(device, &unused);
	else if (!strcmp(what, "iomap"))
		ret = map_ioas(a, b, !strcmp(words[3], "file"));
	else if (!strcmp(what, "iounmap"))
		ret = unmap_ioas(a, b);
	else if (!strcmp(what, "iocopy"))
		ret = copy_ioas(a, b, c);
	else if (!strcmp(what, "hwpt"))
		ret = track_hwpt(is_on(words[1]));
	else if (!strcmp(what, "written"))
		ret = written(a, b, c ? c : PAGE, !strcmp(words[4], "keep"), &dirty);
	else
		return false;
	answer(what, at,
	       ", \"ret\": %d, \"argument\": \"%s\", \"dirty_pages\": %" PRIu64 ", \"size\": %" PRIu64
	       ", \"page_size\": %" PRIu64 ", \"kept\": %s",
	       ret, words[1], dirty, b, c ? c : (uint64_t)PAGE, strcmp(words[4], "keep") ? "false" : "true");
	return true;
}

/* -- lines ---------------------------------------------------------------------------------- */

static void obey_vfio(const char *what, uint64_t at, char words[][64], uint64_t a, uint64_t b)
{
	uint64_t dirty = 0;
	uint32_t devices = 0, value = 0;
	int ret, data_fd = -1;

	if (device < 0)
		die("%s: no device is open, or there is no such act", what);
	if (!strcmp(what, "close")) {
		close_device(at);
		return;
	}
	if (!strcmp(what, "map"))
		ret = map_dma(a, b);
	else if (!strcmp(what, "unmap"))
		ret = unmap_dma(a, b, strcmp(words[3], "dirty") ? NULL : &dirty);
	else if (!strcmp(what, "track"))
		ret = track(is_on(words[1]));
	else if (!strcmp(what, "dirty"))
		ret = dirty_pages(a, b, &dirty);
	else if (!strcmp(what, "dma"))
		ret = log_dma(is_on(words[1]));
	else if (!strcmp(what, "report"))
		ret = report_dma(a, b, &dirty);
	else if (!strcmp(what, "state"))
		ret = set_state(a, &data_fd);
	else if (!strcmp(what, "peek"))
		ret = peek(a, &value);
	else if (!strcmp(what, "poke"))
		ret = poke(a, b);
	else if (!strcmp(what, "reset"))
		ret = ask(device, VFIO_DEVICE_RESET, NULL);
	else if (!strcmp(what, "hot-reset"))
		ret = hot_reset(&devices);
	else
		die("%s: no such act", what);
	answer(what, at, ", \"ret\": %d, \"argument\": \"%s\", \"dirty_pages\": %" PRIu64
	       ", \"data_fd\": %d, \"devices\": %u, \"value\": %u", ret, words[1], dirty, data_fd, devices,
	       value);
}

static void obey(char *line)
{
	char words[5][64] = {};
	int n = sscanf(line, "%63s %63s %63s %63s %63s", words[0], words[1], words[2], words[3], words[4]);
	uint64_t a = strtoull(words[1], NULL, 0), b = strtoull(words[2], NULL, 0), at = now_ns(), sent;
	const char *what = words[0];
	union address address;
	socklen_t size;

	if (n < 1)
		return;
	if (!strcmp(what, "pages")) {
		set_pages(a);
		answer(what, at, ", \"pages\": %" PRIu64, a);
	} else if (!strcmp(what, "run")) {
		start_vcpu();
		while (!*(volatile uint64_t *)&first_entry_ns)
			usleep(100);
		answer(what, at, ", \"first_entry_ns\": %" PRIu64, first_entry_ns);
	} else if (!strcmp(what, "stop")) {
		stop_vcpu(at);
	} else if (!strcmp(what, "listen")) {
		listener = new_socket(words[1], &address, &size);
		if (bind(listener, &address.any, size) || listen(listener, 1))
			die("listen: %s", strerror(errno));
		answer(what, at, "");
	} else if (!strcmp(what, "accept")) {
		channel = accept(listener, NULL, NULL);
		if (channel < 0)
			die("accept: %s", strerror(errno));
		answer(what, at, "");
	} else if (!strcmp(what, "connect")) {
		channel = new_socket(words[1], &address, &size);
		if (connect(channel, &address.any, size))
			die("connect: %s", strerror(errno));
		answer(what, at, ", \"fd\": %d", channel);
	} else if (!strcmp(what, "log")) {
		set_region(is_on(words[1]) ? KVM_MEM_LOG_DIRTY_PAGES : 0);
		memset(owed, 0, (pages + 63) / 64 * 8);
		answer(what, at, ", \"on\": %s", is_on(words[1]) ? "true" : "false");
	} else if (!strcmp(what, "round")) {
		sweep(at, n > 1 ? a : pages);
	} else if (!strcmp(what, "save")) {
		save(at);
	} else if (!strcmp(what, "copy")) {
		copy(at);
	} else if (!strcmp(what, "snapshot")) {
		read_vcpu();
		answer(what, at, "");
	} else if (!strcmp(what, "send")) {
		sent = send_state();
		answer(what, at, ", \"clock\": %" PRIu64 ", \"sent_bytes\": %" PRIu64, (uint64_t)state.clock,
		       sent);
	} else if (!strcmp(what, "share")) {
		share(at);
	} else if (!strcmp(what, "adopt")) {
		adopt(at);
	} else if (!strcmp(what, "receive")) {
		receive(at);
	} else if (!strcmp(what, "load")) {
		load(at);
	} else if (!strcmp(what, "open")) {
		open_device(at, words[1]);
	} else if (!obey_iommufd(what, at, words, a, b)) {
		obey_vfio(what, at, words, a, b);
	}
}

static void *obey_all(void *unused)
{
	char line[512];

	answer("made", now_ns(), ", \"pid\": %d, \"tid\": %d", getpid(), gettid());
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	pthread_mutex_lock(&outbox.lock);
	outbox.ended = true;
	pthread_cond_broadcast(&outbox.changed);
	pthread_mutex_unlock(&outbox.lock);
	return unused;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = kick };
	pthread_t obeying;

	if (argc != 3)
		die("MEMORY_MIB PROTECT expected");
	sigaction(SIGUSR1, &action, NULL);
	make_vm(strtoull(argv[1], NULL, 0), strtoull(argv[2], NULL, 0));
	if (pthread_create(&obeying, NULL, obey_all, NULL))
		die("no thread");
	write_answers();
	pthread_join(obeying, NULL);
	return 0;
}

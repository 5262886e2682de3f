/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * What every probe shares: the one ring, the table of watched processes, and emit().
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "wire.h"

#define MAX_CHANNELS 32

/* One for each process that holds a KVM VM fd. Made at KVM_CREATE_VM, or by the collector for
 * VMs that run already. */
struct vm {
	u64 seq;
	u64 last_exit_ns;
	u32 logging;
	u32 unreported;		/* channels that moved since they were last reported */
	u64 nr_channels;
	u64 channels_overflow;
	s32 channel_fd[MAX_CHANNELS];
	u64 pushes;
	u64 ring_full_exits;
	u64 untracked;
	u64 touched_count;
	u64 uffd_calls;
	u64 uffd_bytes;
	u64 uffd_reported_ns;
};

/* One for each thread inside a traced call, and for each vCPU thread always. */
struct thread {
	u64 enter_ns;
	u64 exit_ns;
	u64 arg;
	u32 cmd;
	u32 fd;
	u32 pieces;
	u32 read_errors;
	u64 bitmap_bytes;
	u64 walked_bytes;
	u64 first_page;
	u32 slot;
	u32 num_pages;
	s32 ret;
	u32 pad;
};

/* Tracepoints syscalls:sys_enter_* and sys_exit_*: the layout is the same for all of them. */
struct syscall_enter {
	u64 common;
	long nr;
	u64 args[6];
};

struct syscall_exit {
	u64 common;
	long nr;
	long ret;
};

struct slot_key {
	u32 tgid;
	u32 slot;
};

/* Probes of modules that may be loaded later are an object of their own, with the first one's ring, VMs
 * and numbering: what is declared here for all (SHARED in vftrace/probes/bcc/object.py) is made once. */
#ifdef SECOND_OBJECT
#define EVENT_PAGES 1
#endif
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_TABLE("hash", u32, struct vm, vms, 4096);
BPF_TABLE("array", u32, u64, lost, 1);
BPF_TABLE("array", u32, u64, unowned, 1);	/* the next seq of stream 0 */
#ifndef SECOND_OBJECT
BPF_TABLE("hash", u64, struct thread, threads, 65536);
BPF_TABLE("hash", struct slot_key, u64, slot_pages, 65536);
BPF_TABLE("array", u32, struct vm, new_vm, 1);
#endif

/* By helper number (include/uapi/linux/bpf.h): where these are called by name, BCC reads all of
 * /proc/kallsyms once for every call in the text, to see whether the kernel has them (since 5.5). */
static long (*const read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*const read_kernel)(void *to, u32 size, const void *from) = (void *)113;

/* For every table BCC also makes functions that print and parse its keys and values, field by field and word
 * by word, and optimizes them: of a value that is bytes there is nothing to make. */
#define AS_BYTES(type) struct type##_bytes { u8 byte[sizeof(struct type)]; } __attribute__((aligned(8)))

#define now_ns() bpf_ktime_get_boot_ns()

/* The value before. For the processor that BCC asks for (BPF v1) LLVM 20 and later refuse the builtin where
 * its value is used, and take the instruction by name only (BPFInstrInfo.td); older ones do not know the name. */
static __always_inline u64 fetch_add(u64 *at, u64 n)
{
#if __clang_major__ >= 20
	asm volatile("%0 = atomic_fetch_add((u64 *)(%1 + 0), %0)" : "+r"(n) : "r"(at) : "memory");
	return n;
#else
	return __sync_fetch_and_add(at, n);
#endif
}

static __always_inline void fill_header(struct vft_header *h, struct vm *vm, u16 kind, u32 size)
{
	u64 id = bpf_get_current_pid_tgid();

	h->at_ns = now_ns();
	h->size = size;
	h->kind = kind;
	h->reserved = 0;
	h->tgid = id >> 32;
	h->tid = (u32)id;
	h->seq = fetch_add(&vm->seq, 1);
}

/* A value read once more. Of one that was compared the verifier knows more on each side, and follows all that
 * comes after for each side; read again it is one value. */
#define AGAIN(value) (*(volatile typeof(value) *)&(value))

#define WAKE 2		/* BPF_RB_FORCE_WAKEUP: the reader must look at /proc at once */
#define NO_WAKE 1	/* BPF_RB_NO_WAKEUP: the reader comes by timer */

static __always_inline void send(void *record, u64 size, u64 wake)
{
	u32 zero = 0;
	u64 *count;

	if (events.ringbuf_output(record, size, wake)) {
		count = lost.lookup(&zero);
		if (count)
			__sync_fetch_and_add(count, 1);
	}
}

#define EMIT_WAKING(vm, number, record, wake) do { \
	fill_header(&(record)->h, vm, number, sizeof(*(record))); \
	send(record, sizeof(*(record)), wake); \
} while (0)

/* A wake-up per record would cost the VMM more than the record. */
#define EMIT(vm, number, record) EMIT_WAKING(vm, number, record, NO_WAKE)

static __always_inline struct vm *current_vm(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return vms.lookup(&tgid);
}

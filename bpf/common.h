/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * What all probes share: the ring buffer, the table of watched processes, and EMIT().
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "wire.h"

/* Per VM, so that one VM cannot fill a table that all share. */
#define MAX_SLOTS 4096
#define MAX_CHANNELS 1024
#define MAX_CHUNKS 16384
#define FD_WORDS 64
#define MAX_FD (64 * FD_WORDS)

/* One per process that holds a KVM VM fd. KVM_CREATE_VM makes the entry; the collector makes it for
 * VMs that already run. `id` is never used again: keys of a VM's entries in other tables begin with
 * it, so a process that gets the pid of an earlier one starts from zero. The collector deletes the
 * entries of VMs that have gone. */
struct vm {
	u64 seq;
	u64 last_exit_ns;
	u32 id;
	u32 logging;
	u64 nr_slots;
	u64 nr_channels;
	u64 nr_chunks;
	u64 not_counted; /* calls and sends for which a table had no room */
	u64 changed_words; /* bit i: some bit of changed[i] is set */
	u64 changed[FD_WORDS]; /* by fd: the channel sent since it was last reported */
	u64 pushes;
	u64 ring_full_exits;
	u64 untracked;
	u64 touched_count;
	u64 touched_done;
	u64 touched_missing;
	u64 uffd_calls;
	u64 uffd_bytes;
	u64 uffd_reported_ns;
};

/* One per thread inside a traced call. A vCPU thread keeps its entry between calls. */
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

/* Records of the tracepoints syscalls:sys_enter_* and sys_exit_*, which all have one layout. */
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
	u32 vm;
	u32 slot;
};

/* Tables that may be full. `full` counts by table the entries for which there was no room. */
enum table {
	TABLE_VMS,
	TABLE_THREADS,
	TABLE_SLOT_PAGES,
	TABLE_CHANNELS,
	TABLE_SENDING,
	TABLE_CHUNKS,
	TABLE_TOUCHED,
	NR_TABLES
};

/* Probes of modules that may be loaded later are separate BPF objects. They define SHARES_RING and
 * use the maps of the first object that are declared here outside #ifndef (SHARED in
 * vftrace/probes/bpf/object.py): ring buffer, VMs and sequence numbers. */
#ifdef SHARES_RING
#define EVENT_PAGES 1
#endif
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_TABLE("hash", u32, struct vm, vms, 8192);
BPF_TABLE("array", u32, u64, lost, 1);
BPF_TABLE("array", u32, u64, mailbox_seq, 1); /* next seq where tgid is 0 */
#ifndef SHARES_RING
BPF_TABLE("hash", u64, struct thread, threads, 65536);
BPF_TABLE("hash", struct slot_key, u64, slot_pages, 65536);
BPF_TABLE("array", u32, struct vm, new_vm, 1);
BPF_TABLE("array", u32, u64, next_vm_id, 1);
BPF_TABLE("array", u32, u64, full, NR_TABLES);
#endif

/* Called by helper number (include/uapi/linux/bpf.h). BCC reads all of /proc/kallsyms for each call
 * by name, to find out whether the kernel has the helper (since 5.5). */
static long (*const read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*const read_kernel)(void *to, u32 size, const void *from) = (void *)113;

/* For every table BCC also generates and optimizes functions that print and parse its keys and
 * values, field by field. A value declared as bytes keeps those functions short. */
#define AS_BYTES(type) \
	struct type##_bytes { \
		u8 byte[sizeof(struct type)]; \
	} __attribute__((aligned(8)))

/* Programs on the entry and the return of a kernel function. The loader finds the function by its
 * name in the BTF of the kernel or of a module (vftrace/probes/bpf/object.py). */
#define FENTRY(function, args...) BPF_PROG(fentry__##function, ##args)
#define FEXIT(function, args...) BPF_PROG(fexit__##function, ##args)

#define now_ns() bpf_ktime_get_boot_ns()

/* Returns the value before the addition. BCC compiles for BPF v1, for which LLVM 20 and later
 * reject the builtin if its result is used, but accept the instruction by name (BPFInstrInfo.td).
 * Older versions do not know that name. */
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

/* Re-read through a volatile pointer, so that the verifier forgets ranges learned from comparisons
 * and explores one path instead of one per case. */
#define REREAD(value) (*(volatile typeof(value) *)&(value))

#define WAKE 2 /* BPF_RB_FORCE_WAKEUP: the reader must look into /proc at once */
#define NO_WAKE 1 /* BPF_RB_NO_WAKEUP: the reader polls */

static __always_inline void count_lost(u64 records)
{
	u32 zero = 0;
	u64 *count;

	if (!records)
		return;
	count = lost.lookup(&zero);
	if (count)
		__sync_fetch_and_add(count, records);
}

/* Returns 1 if the ring buffer has no room for the record, else 0. */
static __always_inline u64 try_send(void *record, u64 size, u64 wake)
{
	return (u64)(s64)events.ringbuf_output(record, size, wake) >> 63;
}

static __always_inline void send(void *record, u64 size, u64 wake)
{
	count_lost(try_send(record, size, wake));
}

#ifndef SHARES_RING
/* Counts an entry for which a table had no room; `vm` may be NULL. */
static __always_inline void count_full(struct vm *vm, u32 table)
{
	u64 *count = full.lookup(&table);

	if (count)
		__sync_fetch_and_add(count, 1);
	if (vm)
		__sync_fetch_and_add(&vm->not_counted, 1);
}
#endif

#define EMIT_WAKING(vm, number, record, wake) \
	do { \
		fill_header(&(record)->h, vm, number, sizeof(*(record))); \
		send(record, sizeof(*(record)), wake); \
	} while (0)

/* Without a wake-up: it would cost the VMM more than the record itself. */
#define EMIT(vm, number, record) EMIT_WAKING(vm, number, record, NO_WAKE)

static __always_inline struct vm *current_vm(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return vms.lookup(&tgid);
}

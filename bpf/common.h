/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * What all probes share: the ring buffers, the table of watched processes, and EMIT().
 */
#include <linux/types.h>
#include <uapi/linux/ptrace.h>
#include "wire.h"

/* Sizes of tables, by the host (table_sizes in vftrace/probes/loader.py); these are the smallest.
 * The VMs of one user get half of a table at most, so that they cannot fill a table that all share
 * (struct owner). */
#ifndef VMS
#define VMS 16384
#define THREADS 65536
#define SLOTS 65536
#define CHANNELS 65536
#define CHUNKS 65536
#endif

/* Per VM, for the same reason. */
#define MAX_SLOTS 4096
#define MAX_CHANNELS 1024
#define MAX_CHUNKS 16384
#define MAX_THREADS 8192
#define MAX_SENDING 2048
#define FD_WORDS 64
#define MAX_FD (64 * FD_WORDS)

/* One per process that holds a KVM VM fd. KVM_CREATE_VM makes the entry; the collector makes it for
 * VMs that already run. `id` is never used again: keys of a VM's entries in other tables begin with
 * it, so a process that gets the pid of an earlier one starts from zero. The collector deletes the
 * entries of VMs that have ended. */
struct vm {
	u64 seq;
	u64 bulk_seq;
	u64 last_exit_ns;
	u64 control_until_ns; /* until when its records have used up its share (has_share) */
	u64 bulk_until_ns;
	u64 lost; /* records for which the ring buffers had no room */
	u64 bulk_lost;
	u32 id;
	u32 logging;
	u32 uid; /* of the user who made it; the collector does not know it of VMs that ran before
		  */
	u32 pad;
	u64 nr_threads;
	u64 nr_sending;
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

struct region {
	u32 slot, flags;
	u64 gpa, bytes, uaddr;
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
	u32 has_region;
	struct region region; /* as it was when the call began */
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

/* By user: the entries that the user's VMs have in each table. When the collector deletes the
 * entries of VMs that have ended, it corrects the numbers. */
struct owner {
	u64 held[NR_TABLES];
};

/* Probes of modules that may be loaded later are separate BPF objects. They define SHARES_RING and
 * use the maps of the first object that are declared here outside #ifndef (SHARED in
 * vftrace/probes/bpf/object.py): ring buffers, VMs and sequence numbers. */
#ifdef SHARES_RING
#define EVENT_PAGES 1
#define BULK_PAGES 1
#endif
/* Bitmaps have a ring buffer of their own, so that they never take the place of anything else. */
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_RINGBUF_OUTPUT(bulk, BULK_PAGES);
/* Preallocated: in a tracepoint the kernel has memory for few new entries at once. */
BPF_TABLE("hash", u32, struct vm, vms, VMS);
BPF_TABLE("array", u32, u64, lost, 2); /* by ring buffer: events, bulk */
BPF_TABLE("array", u32, u64, mailbox_seq, 1); /* next seq where tgid is 0 */
#ifndef SHARES_RING
BPF_TABLE("hash", u64, struct thread, threads, THREADS);
BPF_TABLE("hash", struct slot_key, u64, slot_pages, SLOTS);
BPF_TABLE("hash", u32, struct owner, owners, 4096);
BPF_TABLE("array", u32, struct owner, new_owner, 1);
BPF_TABLE("array", u32, struct vm, new_vm, 1);
BPF_TABLE("array", u32, u64, next_vm_id, 1);
BPF_TABLE("array", u32, u64, full, NR_TABLES);
/* By user, of the first users: the VMs for which `vms` had no room. Nothing else shows these VMs.
 */
BPF_TABLE("hash", u32, u64, untraced, 64);
#endif

/* Called by helper number (include/uapi/linux/bpf.h). BCC reads all of /proc/kallsyms for each call
 * by name, to find out whether the kernel has the helper (since 5.5). */
static long (*const read_user)(void *to, u32 size, const void *from) = (void *)112;
static u64 (*const current_uid_gid)(void) = (void *)15;
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

/* bpf_loop() calls a callback until it returns 1, `count` times at most (Linux 5.17). The verifier
 * follows the callback once, whatever the count, so a loop costs little when a program is loaded
 * and has no limit that matters. BCC cannot name a callback: it is a function `loop_NAME` of its
 * own with one argument, the turn's number, and vftrace/probes/bpf/image.py puts it into the
 * programs that have its number here. LOOP_CONTEXT reads the second argument; it must be the first
 * statement. */
#define LOOP_COPY ((void *)0x7666747263616c00ULL)
#define LOOP_GROUP ((void *)0x7666747263616c01ULL)
#define LOOP_CHANNEL ((void *)0x7666747263616c02ULL)
#define LOOP_CHUNK ((void *)0x7666747263616c03ULL)
#define LOOP_FREE ((void *)0x7666747263616c04ULL)
#define MAX_TURNS (1 << 22)
static long (*const loop)(u32 count, void *callback, void *context, u64 flags) = (void *)181;
#define LOOP_CONTEXT(variable) asm volatile("%0 = r2" : "=r"(variable))

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

static __always_inline void fill_header_of(struct vft_header *h, u16 kind, u32 size, u64 *seq)
{
	u64 id = bpf_get_current_pid_tgid();

	h->at_ns = now_ns();
	h->size = size;
	h->kind = kind;
	h->reserved = 0;
	h->tgid = id >> 32;
	h->tid = (u32)id;
	h->seq = fetch_add(seq, 1);
}

static __always_inline void fill_header(struct vft_header *h, struct vm *vm, u16 kind, u32 size)
{
	fill_header_of(h, kind, size, &vm->seq);
}

/* Re-read through a volatile pointer, so that the verifier forgets ranges learned from comparisons
 * and explores one path instead of one per case. */
#define REREAD(value) (*(volatile typeof(value) *)&(value))

#define WAKE 2 /* BPF_RB_FORCE_WAKEUP: the reader must look into /proc at once */
#define NO_WAKE 1 /* BPF_RB_NO_WAKEUP: the reader polls */

enum ring {
	EVENTS,
	BULK
};

static __always_inline void count_lost(struct vm *vm, u32 ring, u64 records)
{
	u64 *count;

	if (!records)
		return;
	count = lost.lookup(&ring);
	if (count)
		__sync_fetch_and_add(count, records);
	if (vm)
		__sync_fetch_and_add(ring == BULK ? &vm->bulk_lost : &vm->lost, records);
}

/* A VM's share of a ring buffer: an eighth of it at once, and an eighth per second. It counts only
 * while the ring buffer is more than three quarters full: one VM may fill so much, and the rest is
 * for VMs that have written less. `until_ns` is when the share that was used is regained. */
#define SHARE 8
#define SHARE_NS 1000000000ULL

/* BCC has no ringbuf_query(). vftrace/probes/bpf/image.py replaces these numbers by the maps. */
#define MAP_EVENTS ((void *)0x7666747261636500ULL)
#define MAP_BULK ((void *)0x7666747261636501ULL)
#define FILLED 0 /* BPF_RB_AVAIL_DATA */
#define RING_SIZE 1 /* BPF_RB_RING_SIZE */
static u64 (*const ring_query)(void *ring, u64 what) = (void *)134;

static __always_inline bool has_share(void *ring, u64 *until_ns, u64 now, u64 size)
{
	u64 used_until = *until_ns > now ? *until_ns : now, whole = ring_query(ring, RING_SIZE);

	if (used_until > now + SHARE_NS && ring_query(ring, FILLED) > whole / 4 * 3)
		return false;
	/* Records that were sent while there was room count against the share for two seconds at
	 * most. */
	if (used_until < now + 2 * SHARE_NS && whole)
		*until_ns = used_until + size * (SHARE_NS * SHARE) / whole;
	return true;
}

/* Returns 1 if the record is lost, else 0. `vm` may be NULL. */
static __always_inline u64 try_send(struct vm *vm, void *record, u64 size, u64 wake)
{
	u64 at_ns = ((struct vft_header *)record)->at_ns;

	/* Records that wake the reader (a VM, a channel) are rare and always sent. */
	if (vm && wake == NO_WAKE && !has_share(MAP_EVENTS, &vm->control_until_ns, at_ns, size))
		return 1;
	return (u64)(s64)events.ringbuf_output(record, size, wake) >> 63;
}

static __always_inline void send(struct vm *vm, void *record, u64 size, u64 wake)
{
	count_lost(vm, EVENTS, try_send(vm, record, size, wake));
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

static __always_inline void count_untraced(u32 uid)
{
	u64 *count = untraced.lookup(&uid), first = 1;

	count_full(NULL, TABLE_VMS);
	/* Two CPUs may find no entry at once: the one that does not make it adds to it. */
	if (!count && !untraced.insert(&uid, &first))
		return;
	count = untraced.lookup(&uid);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline struct owner *owner_of(u32 uid)
{
	struct owner *owner = owners.lookup(&uid), *fresh;
	u32 zero = 0;

	if (owner)
		return owner;
	fresh = new_owner.lookup(&zero);
	if (fresh)
		owners.insert(&uid, fresh);
	return owners.lookup(&uid);
}

static __always_inline bool has_room(u32 uid, u32 table, u64 size)
{
	struct owner *owner = owner_of(uid);

	/* The count is negative after the end of VMs that the collector found: they were not
	 * counted. */
	return !owner || (s64)owner->held[table] < (s64)size / 2;
}

static __always_inline void count_held(u32 uid, u32 table, s64 entries)
{
	struct owner *owner = owner_of(uid);

	if (owner)
		__sync_fetch_and_add(&owner->held[table], entries);
}
#endif

#define EMIT_WAKING(vm, number, record, wake) \
	do { \
		fill_header(&(record)->h, vm, number, sizeof(*(record))); \
		send(vm, record, sizeof(*(record)), wake); \
	} while (0)

/* The reader is not woken: that would cost the VMM more than the record itself. */
#define EMIT(vm, number, record) EMIT_WAKING(vm, number, record, NO_WAKE)

static __always_inline struct vm *current_vm(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return vms.lookup(&tgid);
}
